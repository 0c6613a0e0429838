//! What products keep in the tile registers: 0 to 3 hold sums, 4 and 5 parts of the left factor, 6 and 7 of the right one.
//!
//! The compiler does not know of these registers. What stands between [`configure`] and [`release`] is assembly that names them, and
//! nothing else in this process uses them.

use std::arch::asm;

use crate::pack::LINE;

/// Rows of a tile.
pub(super) const TILE_ROWS: usize = 16;

/// Shapes of the tile registers, as `ldtilecfg` reads them.
#[repr(C, align(64))]
pub(super) struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

/// Eight whole tiles.
pub(super) static WHOLE: Config = {
    let (mut bytes_per_row, mut rows) = ([0; 16], [0; 16]);
    let mut i = 0;
    while i < 8 {
        (bytes_per_row[i], rows[i]) = (LINE as u16, TILE_ROWS as u8);
        i += 1;
    }
    Config { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row, rows }
};

/// Makes all registers whole tiles.
///
/// # Safety
/// The tier is supported.
pub(super) unsafe fn configure() {
    // SAFETY: the configuration is of palette 1 and within its limits.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE, options(nostack, preserves_flags, readonly)) }
}

/// Gives the registers back: threads whose tiles are in use are dearer to switch.
///
/// # Safety
/// The tier is supported.
pub(super) unsafe fn release() {
    // SAFETY: the caller's promise.
    unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
}

/// Where a tile of sums is in memory: 16 rows of 16 floats.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub at: *mut f32,
    /// Bytes from row to row.
    pub stride: usize,
}

/// `op!(register, sums)` for the sums of `t` tiles of rows and `g` of columns.
macro_rules! each_sum {
    ($op:ident, $sums:expr, $t:expr, $g:expr) => {
        $op!("tmm0", $sums[0][0]);
        if $g > 1 {
            $op!("tmm1", $sums[0][1]);
        }
        if $t > 1 {
            $op!("tmm2", $sums[1][0]);
        }
        if $t > 1 && $g > 1 {
            $op!("tmm3", $sums[1][1]);
        }
    };
}

/// Loads the sums of `T` tiles of rows and `G` of columns, `[rows][columns]`.
///
/// # Safety
/// The tiles are configured, and the sums are valid for reads.
#[inline(always)]
pub(super) unsafe fn load_sums<const T: usize, const G: usize>(sums: &[[Sums; 2]; 2]) {
    macro_rules! load {
        ($tile:literal, $sums:expr) => {
            asm!(concat!("tileloadd ", $tile, ", [{at} + {stride}*1]"), at = in(reg) $sums.at,
                stride = in(reg) $sums.stride, options(nostack, preserves_flags, readonly))
        };
    }
    // SAFETY: the caller's promise.
    unsafe {
        each_sum!(load, sums, T, G);
    }
}

/// Stores what [`load_sums`] loads.
///
/// # Safety
/// The tiles are configured, and the sums are valid for writes.
#[inline(always)]
pub(super) unsafe fn store_sums<const T: usize, const G: usize>(sums: &[[Sums; 2]; 2]) {
    macro_rules! store {
        ($tile:literal, $sums:expr) => {
            asm!(concat!("tilestored [{at} + {stride}*1], ", $tile), at = in(reg) $sums.at,
                stride = in(reg) $sums.stride, options(nostack, preserves_flags))
        };
    }
    // SAFETY: the caller's promise.
    unsafe {
        each_sum!(store, sums, T, G);
    }
}

/// Sets all sums to zero.
///
/// # Safety
/// The tiles are configured.
#[inline(always)]
pub(super) unsafe fn zero_sums() {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            options(nomem, nostack, preserves_flags)
        );
    }
}
