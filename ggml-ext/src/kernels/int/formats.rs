//! How the packed types are computed with: from lines to codes, from fields to scales.

use super::isa::Isa;
use crate::GgmlType;
use crate::blocks::{self, IQ4_VALUES, Lattice};
use crate::pack::{
    Iq4Nl, Iq4Xs, LINE, Mxfp4, Nvfp4, Packed, Points, Q1_0, Q2_0, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K,
    Q8_0, ROWS, Tq1_0, Tq2_0,
};

/// Runs `$body` with `$F` naming the format of a packed type. Types whose layouts are the same, which differ in their [`Codebook`] or
/// only in how a file has them, share one, as every format is compiled for every tier.
macro_rules! with_format {
    ($ty:expr, $F:ident => $body:expr) => {
        $crate::kernels::int::formats::with_format!(@match $ty, $F, $body,
            Q4_0 => Q4_0, Q4_1 => Q4_1, Q5_0 => Q5_0, Q5_1 => Q5_1, Q8_0 => Q8_0, IQ4_NL => Iq4Nl, MXFP4 => Mxfp4,
            NVFP4 => Nvfp4, Q2_K => Q2K, Q3_K => Q3K, Q4_K => Q4K, Q5_K => Q5K, Q6_K => Q6K, IQ4_XS => Iq4Xs,
            IQ1_S | IQ2_XXS => Points<$crate::blocks::IQ1_S>, IQ1_M | IQ2_XS | IQ2_S => Points<$crate::blocks::IQ1_M>,
            IQ3_XXS | IQ3_S => Points<$crate::blocks::IQ3_S>, TQ1_0 | TQ2_0 => Tq2_0, Q1_0 => Q1_0, Q2_0 => Q2_0)
    };
    (@match $ty:expr, $F:ident, $body:expr, $($($variant:ident)|+ => $layout:ident $(<$block:path>)?),*) => {
        match $ty {
            $($($crate::GgmlType::$variant)|+ => {
                type $F = $crate::pack::$layout$(<$block>)?;
                $body
            })*
            ty => unreachable!("{ty} has no packed layout"),
        }
    };
}
pub(super) use with_format;

/// What the codes of a type that index a table stand for, and what its scales count in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codebook {
    levels: [i8; 16],
    unit: f32,
}

impl Codebook {
    /// That of a type; of a type without a table it is not used.
    pub fn of(ty: GgmlType) -> Self {
        if let Some(kind) = blocks::kind(ty) {
            return Self { levels: kind.levels, unit: kind.unit };
        }
        let levels = match ty {
            GgmlType::MXFP4 | GgmlType::NVFP4 => E2M1_VALUES,
            _ => IQ4_VALUES,
        };
        Self { levels, unit: 1.0 }
    }
}

/// A packed type: element = `scale * (code - zero) + min`.
pub(super) trait Format: Packed {
    /// Codes are unsigned and below `1 << BITS`; with 8 they are signed.
    const BITS: u32;
    /// The code of zero is `1 << ZERO`, or 0.
    const ZERO: Option<u32> = None;
    /// Scales (and minima) belong to 16 columns, not to 32.
    const HALVES: bool = false;
    /// There is a minimum to add.
    const HAS_MIN: bool = false;

    /// The codes of 32 columns, four per line.
    ///
    /// # Safety
    /// As [`Isa`]; `lines` has `LINES_BYTES`.
    unsafe fn codes<I: Isa>(lines: *const u8, book: &Codebook) -> [I::Line; 8];

    /// The 16-bit fields of a block.
    ///
    /// # Safety
    /// As [`Isa`]; `fields` has `FIELDS_BYTES`.
    #[inline(always)]
    unsafe fn head<I: Isa>(fields: *const u8, _book: &Codebook) -> [I::Floats; 2] {
        // SAFETY: as the caller promises; the fields of 16 rows are 32 bytes.
        unsafe { [if Self::WORDS > 0 { I::load_f16(fields) } else { I::zero() }, second_word::<I, Self>(fields)] }
    }

    /// The scales of columns `32 * i..` of a block.
    ///
    /// # Safety
    /// As [`Isa`]; `bytes` are the 8-bit fields of the block.
    #[inline(always)]
    unsafe fn scales<I: Isa>(head: [I::Floats; 2], bytes: *const u8, i: usize) -> Scales<I> {
        let _ = (bytes, i);
        Scales { scale: [head[0]; 2], min: [head[1]; 2] }
    }
}

/// The scales of 32 columns: for the first and the last 16 if [`Format::HALVES`], else the first of each.
pub(super) struct Scales<I: Isa> {
    pub scale: [I::Floats; 2],
    pub min: [I::Floats; 2],
}

/// The second 16-bit field. It is `dmin` wherever 8-bit fields exist, and enters with a minus.
#[inline(always)]
unsafe fn second_word<I: Isa, P: Packed + ?Sized>(fields: *const u8) -> I::Floats {
    // SAFETY: as the caller promises, there are `WORDS` fields of 32 bytes.
    unsafe {
        match (P::WORDS, P::BYTES) {
            (2, 0) => I::load_f16(fields.add(2 * ROWS)),
            (2, _) => I::negate(I::load_f16(fields.add(2 * ROWS))),
            _ => I::zero(),
        }
    }
}

/// The codes of a plane of `BITS` bits, each moved to bit `AT` of its byte.
#[inline(always)]
unsafe fn plane<I: Isa, const BITS: usize, const AT: i32>(lines: *const u8) -> [I::Line; 8] {
    // SAFETY: as the caller promises, `lines` has BITS lines.
    unsafe {
        let mask = I::splat_line((((1_u32 << BITS) - 1) << AT) as u8);
        let mut codes = [mask; 8];
        let mut g = 0;
        while g < 8 {
            let line = I::line(lines.add(g % BITS * LINE));
            codes[g] = I::and(I::shift(line, AT - (BITS * (g / BITS)) as i32), mask);
            g += 1;
        }
        codes
    }
}

#[inline(always)]
unsafe fn merge<I: Isa>(mut low: [I::Line; 8], high: [I::Line; 8]) -> [I::Line; 8] {
    let mut g = 0;
    while g < 8 {
        // SAFETY: as the caller promises.
        low[g] = unsafe { I::or(low[g], high[g]) };
        g += 1;
    }
    low
}

/// Codes below 16 read off a table of signed bytes.
#[inline(always)]
unsafe fn table<I: Isa>(values: &[i8; 16], mut codes: [I::Line; 8]) -> [I::Line; 8] {
    let mut bytes = [0; 16];
    let mut i = 0;
    while i < 16 {
        bytes[i] = if I::UNSIGNED { values[i] as u8 ^ 0x80 } else { values[i] as u8 };
        i += 1;
    }
    let mut g = 0;
    while g < 8 {
        // SAFETY: as the caller promises.
        codes[g] = unsafe { I::look_up(&bytes, codes[g]) };
        g += 1;
    }
    codes
}

/// Twice the values of E2M1.
const E2M1_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// `codes` by the planes of a type.
macro_rules! codes_of_planes {
    (4) => {
        #[inline(always)]
        unsafe fn codes<I: Isa>(lines: *const u8, _book: &Codebook) -> [I::Line; 8] {
            // SAFETY: as the caller promises, `lines` has a plane of 4 bits.
            unsafe { plane::<I, 4, 0>(lines) }
        }
    };
    (2) => {
        #[inline(always)]
        unsafe fn codes<I: Isa>(lines: *const u8, _book: &Codebook) -> [I::Line; 8] {
            // SAFETY: as the caller promises, `lines` has a plane of 2 bits.
            unsafe { plane::<I, 2, 0>(lines) }
        }
    };
    ($low:literal + $high:literal) => {
        #[inline(always)]
        unsafe fn codes<I: Isa>(lines: *const u8, _book: &Codebook) -> [I::Line; 8] {
            // SAFETY: as the caller promises, `lines` has both planes.
            unsafe { merge::<I>(plane::<I, $low, 0>(lines), plane::<I, $high, $low>(lines.add($low * LINE))) }
        }
    };
}

/// `codes` by a table.
macro_rules! codes_of_table {
    () => {
        #[inline(always)]
        unsafe fn codes<I: Isa>(lines: *const u8, book: &Codebook) -> [I::Line; 8] {
            // SAFETY: as the caller promises, `lines` has 4 lines.
            unsafe { table::<I>(&book.levels, plane::<I, 4, 0>(lines)) }
        }
    };
}

impl Format for Q4_0 {
    const BITS: u32 = 4;
    const ZERO: Option<u32> = Some(3);
    codes_of_planes!(4);
}

impl Format for Q4_1 {
    const BITS: u32 = 4;
    const HAS_MIN: bool = true;
    codes_of_planes!(4);
}

impl Format for Q5_0 {
    const BITS: u32 = 5;
    const ZERO: Option<u32> = Some(4);
    codes_of_planes!(4 + 1);
}

impl Format for Q5_1 {
    const BITS: u32 = 5;
    const HAS_MIN: bool = true;
    codes_of_planes!(4 + 1);
}

impl Format for Q8_0 {
    const BITS: u32 = 8;

    #[inline(always)]
    unsafe fn codes<I: Isa>(lines: *const u8, _book: &Codebook) -> [I::Line; 8] {
        // SAFETY: as the caller promises, `lines` has 8 lines.
        unsafe {
            let flip = I::splat_line(0x80);
            let mut codes = [flip; 8];
            let mut g = 0;
            while g < 8 {
                let line = I::line(lines.add(g * LINE));
                codes[g] = if I::UNSIGNED { I::xor(line, flip) } else { line };
                g += 1;
            }
            codes
        }
    }
}

impl Format for Iq4Nl {
    const BITS: u32 = 8;
    codes_of_table!();
}

impl Format for Mxfp4 {
    const BITS: u32 = 8;
    codes_of_table!();

    #[inline(always)]
    unsafe fn scales<I: Isa>(head: [I::Floats; 2], bytes: *const u8, _i: usize) -> Scales<I> {
        // SAFETY: as the caller promises; the only field is the exponent of 16 rows.
        Scales { scale: [unsafe { I::load_e8m0_half(bytes) }; 2], min: head }
    }
}

impl Format for Nvfp4 {
    const BITS: u32 = 8;
    const HALVES: bool = true;
    codes_of_table!();

    #[inline(always)]
    unsafe fn scales<I: Isa>([_, zero]: [I::Floats; 2], bytes: *const u8, i: usize) -> Scales<I> {
        // SAFETY: as the caller promises; fields 2 * i and 2 * i + 1 of 16 rows.
        let scale = |j: usize| unsafe { I::load_ue4m3_half(bytes.add(j * ROWS)) };
        Scales { scale: [scale(2 * i), scale(2 * i + 1)], min: [zero; 2] }
    }
}

/// `scales` of the types with a scale and a minimum per 32 columns.
macro_rules! scale_and_min_per_32 {
    () => {
        #[inline(always)]
        unsafe fn scales<I: Isa>([d, neg_dmin]: [I::Floats; 2], bytes: *const u8, i: usize) -> Scales<I> {
            // SAFETY: as the caller promises; fields 2 * i and 2 * i + 1 of 16 rows.
            unsafe {
                let scale = I::mul(d, I::load_u8(bytes.add(2 * i * ROWS)));
                let min = I::mul(neg_dmin, I::load_u8(bytes.add((2 * i + 1) * ROWS)));
                Scales { scale: [scale; 2], min: [min; 2] }
            }
        }
    };
}

/// `scales` of the types with a signed scale per 16 columns.
macro_rules! signed_scale_per_16 {
    () => {
        #[inline(always)]
        unsafe fn scales<I: Isa>([d, zero]: [I::Floats; 2], bytes: *const u8, i: usize) -> Scales<I> {
            // SAFETY: as the caller promises; fields 2 * i and 2 * i + 1 of 16 rows.
            unsafe {
                let first = I::mul(d, I::load_i8(bytes.add(2 * i * ROWS)));
                let last = I::mul(d, I::load_i8(bytes.add((2 * i + 1) * ROWS)));
                Scales { scale: [first, last], min: [zero; 2] }
            }
        }
    };
}

impl Format for Q4K {
    const BITS: u32 = 4;
    const HAS_MIN: bool = true;
    codes_of_planes!(4);
    scale_and_min_per_32!();
}

impl Format for Q5K {
    const BITS: u32 = 5;
    const HAS_MIN: bool = true;
    codes_of_planes!(4 + 1);
    scale_and_min_per_32!();
}

impl Format for Q6K {
    const BITS: u32 = 6;
    const ZERO: Option<u32> = Some(5);
    const HALVES: bool = true;
    codes_of_planes!(4 + 2);
    signed_scale_per_16!();
}

impl Format for Q3K {
    const BITS: u32 = 3;
    const ZERO: Option<u32> = Some(2);
    const HALVES: bool = true;
    codes_of_planes!(2 + 1);
    signed_scale_per_16!();
}

impl Format for Q2K {
    const BITS: u32 = 2;
    const HALVES: bool = true;
    const HAS_MIN: bool = true;
    codes_of_planes!(2);

    #[inline(always)]
    unsafe fn scales<I: Isa>([d, neg_dmin]: [I::Floats; 2], bytes: *const u8, i: usize) -> Scales<I> {
        // SAFETY: as the caller promises; fields 2 * i and 2 * i + 1 of 16 rows.
        unsafe {
            let (scale0, min0) = I::load_u4_pairs(bytes.add(2 * i * ROWS));
            let (scale1, min1) = I::load_u4_pairs(bytes.add((2 * i + 1) * ROWS));
            Scales {
                scale: [I::mul(d, scale0), I::mul(d, scale1)],
                min: [I::mul(neg_dmin, min0), I::mul(neg_dmin, min1)],
            }
        }
    }
}

impl Format for Iq4Xs {
    const BITS: u32 = 8;
    codes_of_table!();

    #[inline(always)]
    unsafe fn scales<I: Isa>([d, zero]: [I::Floats; 2], bytes: *const u8, i: usize) -> Scales<I> {
        // SAFETY: as the caller promises; field i of 16 rows.
        Scales { scale: [unsafe { I::mul(d, I::load_i8(bytes.add(i * ROWS))) }; 2], min: [zero; 2] }
    }
}

/// Types of codes 0..=3 (or 2), less one.
macro_rules! ternary {
    ($($layout:ident)*) => {
        $(impl Format for $layout {
            const BITS: u32 = 2;
            const ZERO: Option<u32> = Some(0);
            codes_of_planes!(2);
        })*
    };
}

ternary!(Tq1_0 Tq2_0 Q2_0);

impl Format for Q1_0 {
    /// Bits become 0 or 2, of which one is subtracted.
    const BITS: u32 = 2;
    const ZERO: Option<u32> = Some(0);

    #[inline(always)]
    unsafe fn codes<I: Isa>(lines: *const u8, _book: &Codebook) -> [I::Line; 8] {
        // SAFETY: as the caller promises, `lines` has a plane of 1 bit.
        unsafe { plane::<I, 1, 1>(lines) }
    }
}

impl<L: Lattice> Format for Points<L> {
    const BITS: u32 = 8;
    const HALVES: bool = L::KIND.groups == 16;

    #[inline(always)]
    unsafe fn codes<I: Isa>(lines: *const u8, book: &Codebook) -> [I::Line; 8] {
        // SAFETY: as the caller promises, `lines` has a plane of 4 bits, or one of 2 bits and one of 1 bit.
        unsafe {
            let codes = if L::KIND.bits() == 4 {
                plane::<I, 4, 0>(lines)
            } else {
                merge::<I>(plane::<I, 2, 0>(lines), plane::<I, 1, 2>(lines.add(2 * LINE)))
            };
            table::<I>(&book.levels, codes)
        }
    }

    #[inline(always)]
    unsafe fn head<I: Isa>(fields: *const u8, book: &Codebook) -> [I::Floats; 2] {
        // SAFETY: as the caller promises; the fields of 16 rows are 32 bytes.
        unsafe { [I::mul(I::load_f16(fields), I::splat(&raw const book.unit)), I::zero()] }
    }

    #[inline(always)]
    unsafe fn scales<I: Isa>([d, zero]: [I::Floats; 2], bytes: *const u8, i: usize) -> Scales<I> {
        // SAFETY: as the caller promises; fields of 16 rows, one or two per 32 columns.
        unsafe {
            let scale = |j: usize| I::mul(d, I::load_u8(bytes.add(j * ROWS)));
            let scale = if Self::HALVES { [scale(2 * i), scale(2 * i + 1)] } else { [scale(i); 2] };
            Scales { scale, min: [zero; 2] }
        }
    }
}
