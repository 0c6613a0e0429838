//! Float kernels: norms, activations, softmax, rotary embedding, conversions, and the two small products of attention.
//!
//! Each kernel is written once, over the vector type of `simd.rs`, and compiled once per tier, inside functions that
//! enable the tier's instructions. Kernels take slices and strided [`Rows`]; they never see threads, layers or files.
//! A result never depends on how many rows a call covers, so neither ubatch size nor thread count changes a bit of it.
//!
//! A length that does not fit is a bug in the caller and panics; no input value does. Masked scores are `-inf`.
//!
//! The NEON tier has passed the tests under user-mode emulation (qemu); its tile sizes are not tuned on hardware.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
mod channels;
mod convert;
mod delta;
mod elem;
mod gemm;
mod heads;
mod keyed;
mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod rope;
mod rows;
mod scan;
mod simd;
mod state;
mod vector;

#[cfg(test)]
mod tests;

pub use channels::ChannelUpdate;
pub use elem::{BlockQ8_0, KEY_GROUP, KeysQ8_0};
pub use heads::{HeadNet, UNIT_FLOATS, UnitAct};
pub use keyed::KeyedUpdate;
pub use rows::{Rows, RowsMut};
pub use state::{StateRates, StateUpdate};

use super::Tier;
use elem::Elem;
use half::{bf16, f16};

/// Passes the list of kernels to another macro: name in the table, implementation, signature.
macro_rules! float_kernels {
    ($then:ident $(, $arg:tt)*) => {
        $then! {
            $($arg)*
            dot = vector::dot(a: &[f32], b: &[f32]) -> f32;
            max = vector::max(x: &[f32]) -> f32;
            add_assign = vector::add_assign(y: &mut [f32], x: &[f32]) -> ();
            mul_assign = vector::mul_assign(y: &mut [f32], x: &[f32]) -> ();
            add_product = vector::add_product(y: &mut [f32], a: &[f32], b: &[f32]) -> ();
            axpy = vector::axpy(a: f32, x: &[f32], y: &mut [f32]) -> ();
            scale = vector::scale(x: &mut [f32], s: f32) -> ();
            rms_norm = vector::rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> ();
            rms_norm_in_place = vector::rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) -> ();
            exp = math::exp_in_place(x: &mut [f32]) -> ();
            exp_sub_sum = math::exp_sub_sum(x: &mut [f32], max: f32) -> f32;
            softmax = math::softmax(x: &mut [f32]) -> ();
            relu = math::relu(x: &mut [f32]) -> ();
            silu = math::silu(x: &mut [f32]) -> ();
            gelu = math::gelu(x: &mut [f32]) -> ();
            silu_mul = math::silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) -> ();
            gelu_mul = math::gelu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) -> ();
            sigmoid = math::sigmoid(x: &mut [f32]) -> ();
            sigmoid_mul = math::sigmoid_mul(gate: &[f32], x: &mut [f32]) -> ();
            clamped_swiglu = math::clamped_swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) -> ();
            softplus = math::softplus(x: &mut [f32]) -> ();
            soft_cap = math::soft_cap(x: &mut [f32], cap: f32) -> ();
            f16_to_f32 = convert::f16_to_f32(src: &[f16], dst: &mut [f32]) -> ();
            f32_to_f16 = convert::f32_to_f16(src: &[f32], dst: &mut [f16]) -> ();
            bf16_to_f32 = convert::bf16_to_f32(src: &[bf16], dst: &mut [f32]) -> ();
            f32_to_bf16 = convert::f32_to_bf16(src: &[f32], dst: &mut [bf16]) -> ();
            quantize_q8_0 = convert::quantize_q8_0(src: &[f32], dst: &mut [u8]) -> ();
            q8_0_to_f32 = convert::q8_0_to_f32(src: &[u8], dst: &mut [f32]) -> ();
            rope_norm = rope::rope_norm(x: &mut [f32], cos: &[f32], sin: &[f32]) -> ();
            rope_neox = rope::rope_neox(x: &mut [f32], cos: &[f32], sin: &[f32]) -> ();
            sgemm_nt = gemm::sgemm_nt(alpha: f32, a: Rows<f32>, b: Rows<f32>, c: RowsMut<f32>) -> ();
            scores_f16 = gemm::scores_f16(alpha: f32, q: Rows<f32>, k: Rows<f16>, out: RowsMut<f32>) -> ();
            scores_q8_0 = gemm::scores_q8_0(alpha: f32, q: Rows<f32>, k: &[KeysQ8_0], first: usize, out: RowsMut<f32>) -> ();
            sgemm_nn = gemm::sgemm_nn(alpha: f32, p: Rows<f32>, v: Rows<f32>, out: RowsMut<f32>) -> ();
            sgemm_nn_acc = gemm::sgemm_nn_acc(p: Rows<f32>, v: Rows<f32>, out: RowsMut<f32>) -> ();
            align_heads = heads::align_heads(net: &HeadNet, x: Rows<f32>, units: &mut [f32], out: RowsMut<f32>) -> ();
            delta_rule = delta::delta_rule(update: StateUpdate) -> ();
            keyed_delta_rule = delta::keyed_delta_rule(update: StateUpdate, decays: Rows<f32>) -> ();
            selective_scan = scan::selective_scan(update: StateUpdate) -> ();
            channel_scan = channels::channel_scan(update: ChannelUpdate) -> ();
            keyed_scan = keyed::keyed_scan(update: KeyedUpdate) -> ();
            values_f16 = gemm::values_f16(p: Rows<f32>, v: Rows<f16>, out: RowsMut<f32>) -> ();
            values_q8_0 = gemm::values_q8_0(p: Rows<f32>, v: Rows<BlockQ8_0>, out: RowsMut<f32>) -> ();
        }
    };
}

macro_rules! declare_table {
    ($($name:ident = $module:ident :: $f:ident ($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => {
        /// The float kernels of one tier. A value exists only on a CPU that has the tier's instructions.
        ///
        /// Lengths are in elements. Where two slices must agree in length, a kernel panics when they do not.
        #[derive(Debug, Clone, Copy)]
        pub struct FloatKernels {
            $($name: unsafe fn($($ty),*) -> $ret,)*
        }
    };
}
float_kernels!(declare_table);

/// Compiles every kernel over `$tier::V`, with the attribute that enables its instructions.
macro_rules! instantiate {
    ($tier:ident $attribute:tt $($name:ident = $module:ident :: $f:ident ($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => {
        {
            use $tier::V;
            $(
                /// # Safety
                /// The CPU has the instructions, and the lengths were checked by the method of this name.
                # $attribute
                unsafe fn $name($($arg: $ty),*) -> $ret {
                    // SAFETY: the caller's contract.
                    unsafe { $module::$f::<V>($($arg),*) }
                }
            )*
            FloatKernels { $($name),* }
        }
    };
}

static PORTABLE: FloatKernels = float_kernels!(instantiate, portable, [inline]);
#[cfg(target_arch = "x86_64")]
static AVX2: FloatKernels = float_kernels!(instantiate, avx2, [target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
static AVX512: FloatKernels =
    float_kernels!(instantiate, avx512, [target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]);
#[cfg(target_arch = "aarch64")]
static NEON: FloatKernels = float_kernels!(instantiate, neon, [target_feature(enable = "neon")]);

impl FloatKernels {
    /// The kernels of `tier`, which the caller has found to be supported by this CPU.
    pub(super) fn for_supported_tier(tier: Tier) -> Self {
        debug_assert!(tier.is_supported());
        match tier {
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 | Tier::AvxVnni => AVX2,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 | Tier::Amx => AVX512,
            #[cfg(target_arch = "aarch64")]
            Tier::Neon => NEON,
            _ => PORTABLE,
        }
    }
}

/// Panics, naming the lengths, unless they are all equal.
macro_rules! same_length {
    ($first:expr $(, $other:expr)+) => {
        $(assert_eq!($first.len(), $other.len(), concat!(stringify!($first), " and ", stringify!($other), " differ in length"));)+
    };
}

// SAFETY (of every block below): a table exists only where the CPU has its instructions, and the method has just checked
// the lengths its kernel relies on.
impl FloatKernels {
    /// Sum of `a[i] * b[i]`, in f32 over several partial sums.
    pub fn dot(&self, a: &[f32], b: &[f32]) -> f32 {
        same_length!(a, b);
        // SAFETY: see the impl.
        unsafe { (self.dot)(a, b) }
    }

    /// The largest element; `-inf` for an empty slice. Whether a NaN counts is unspecified.
    pub fn max(&self, x: &[f32]) -> f32 {
        // SAFETY: see the impl.
        unsafe { (self.max)(x) }
    }

    /// `y[i] += x[i]`.
    pub fn add_assign(&self, y: &mut [f32], x: &[f32]) {
        same_length!(y, x);
        // SAFETY: see the impl.
        unsafe { (self.add_assign)(y, x) }
    }

    /// `y[i] *= x[i]`.
    pub fn mul_assign(&self, y: &mut [f32], x: &[f32]) {
        same_length!(y, x);
        // SAFETY: see the impl.
        unsafe { (self.mul_assign)(y, x) }
    }

    /// `y[i] += a[i] * b[i]`.
    pub fn add_product(&self, y: &mut [f32], a: &[f32], b: &[f32]) {
        same_length!(y, a, b);
        // SAFETY: see the impl.
        unsafe { (self.add_product)(y, a, b) }
    }

    /// `y[i] += a * x[i]`.
    pub fn axpy(&self, a: f32, x: &[f32], y: &mut [f32]) {
        same_length!(x, y);
        // SAFETY: see the impl.
        unsafe { (self.axpy)(a, x, y) }
    }

    /// `x[i] *= s`.
    pub fn scale(&self, x: &mut [f32], s: f32) {
        // SAFETY: see the impl.
        unsafe { (self.scale)(x, s) }
    }

    /// `out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]`: RMSNorm, Zhang and Sennrich 2019 (arXiv 1910.07467).
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        same_length!(x, weight, out);
        // SAFETY: see the impl.
        unsafe { (self.rms_norm)(x, weight, eps, out) }
    }

    /// [`Self::rms_norm`] onto its own input, as for the norms of query and key heads.
    pub fn rms_norm_in_place(&self, x: &mut [f32], weight: &[f32], eps: f32) {
        same_length!(x, weight);
        // SAFETY: see the impl.
        unsafe { (self.rms_norm_in_place)(x, weight, eps) }
    }

    /// `x[i] = e^x[i]`, within 2 units in the last place of `e^y` for a `y` within 1.3 units of `x[i]`; underflow is gradual, overflow is
    /// infinity.
    pub fn exp(&self, x: &mut [f32]) {
        // SAFETY: see the impl.
        unsafe { (self.exp)(x) }
    }

    /// `x[i] = e^(x[i] - max)`, but 2e-35 where that is less, as for a score of `-inf`: smaller numbers cost far more time than they are worth.
    /// Returns their sum. All become 0 when `max` is `-inf`: a fully masked tile adds nothing. No `x[i]` may be more than 80 above `max`.
    pub fn exp_sub_sum(&self, x: &mut [f32], max: f32) -> f32 {
        // SAFETY: see the impl.
        unsafe { (self.exp_sub_sum)(x, max) }
    }

    /// `x[i] = e^x[i] / sum_j e^x[j]`; all zeros when every score is `-inf`.
    pub fn softmax(&self, x: &mut [f32]) {
        // SAFETY: see the impl.
        unsafe { (self.softmax)(x) }
    }

    /// `x[i] = max(x[i], 0)`.
    pub fn relu(&self, x: &mut [f32]) {
        // SAFETY: see the impl.
        unsafe { (self.relu)(x) }
    }

    /// `x[i] = x[i] / (1 + e^-x[i])`.
    pub fn silu(&self, x: &mut [f32]) {
        // SAFETY: see the impl.
        unsafe { (self.silu)(x) }
    }

    /// `x[i] = x[i] / 2 * (1 + tanh(sqrt(2 / pi) * (x[i] + 0.044715 * x[i]^3)))`: GELU by its tanh approximation.
    pub fn gelu(&self, x: &mut [f32]) {
        // SAFETY: see the impl.
        unsafe { (self.gelu)(x) }
    }

    /// `out[i] = silu(gate[i]) * up[i]`: the gate of SwiGLU (arXiv 2002.05202).
    pub fn silu_mul(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        same_length!(gate, up, out);
        // SAFETY: see the impl.
        unsafe { (self.silu_mul)(gate, up, out) }
    }

    /// `out[i] = gelu(gate[i]) * up[i]`: the gate of GEGLU (arXiv 2002.05202), with [`Self::gelu`].
    pub fn gelu_mul(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        same_length!(gate, up, out);
        // SAFETY: see the impl.
        unsafe { (self.gelu_mul)(gate, up, out) }
    }

    /// `out[i] = g / (1 + e^(-1.702 g)) * (u + 1)` of `g = min(gate[i], 7)` and `u = clamp(up[i], -7, 7)`: the gate of gpt-oss
    /// (arXiv 2508.10925).
    pub fn clamped_swiglu(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        same_length!(gate, up, out);
        // SAFETY: see the impl.
        unsafe { (self.clamped_swiglu)(gate, up, out) }
    }

    /// `x[i] = 1 / (1 + e^-x[i])`.
    pub fn sigmoid(&self, x: &mut [f32]) {
        // SAFETY: see the impl.
        unsafe { (self.sigmoid)(x) }
    }

    /// `x[i] *= 1 / (1 + e^-gate[i])`: the gate on attention's results of Qwen3-Next (arXiv 2505.06708).
    pub fn sigmoid_mul(&self, gate: &[f32], x: &mut [f32]) {
        same_length!(gate, x);
        // SAFETY: see the impl.
        unsafe { (self.sigmoid_mul)(gate, x) }
    }

    /// `x[i] = ln(1 + e^x[i])`.
    pub fn softplus(&self, x: &mut [f32]) {
        // SAFETY: see the impl.
        unsafe { (self.softplus)(x) }
    }

    /// `x[i] = cap * tanh(x[i] / cap)`.
    pub fn soft_cap(&self, x: &mut [f32], cap: f32) {
        // SAFETY: see the impl.
        unsafe { (self.soft_cap)(x, cap) }
    }

    /// `dst[i] = src[i]`, exactly.
    pub fn f16_to_f32(&self, src: &[f16], dst: &mut [f32]) {
        same_length!(src, dst);
        // SAFETY: see the impl.
        unsafe { (self.f16_to_f32)(src, dst) }
    }

    /// `dst[i] = src[i]` to nearest, ties to even; infinity from 65520 on.
    pub fn f32_to_f16(&self, src: &[f32], dst: &mut [f16]) {
        same_length!(src, dst);
        // SAFETY: see the impl.
        unsafe { (self.f32_to_f16)(src, dst) }
    }

    /// `dst[i] = src[i]`, exactly.
    pub fn bf16_to_f32(&self, src: &[bf16], dst: &mut [f32]) {
        same_length!(src, dst);
        // SAFETY: see the impl.
        unsafe { (self.bf16_to_f32)(src, dst) }
    }

    /// `dst[i] = src[i]` to nearest, ties to even.
    pub fn f32_to_bf16(&self, src: &[f32], dst: &mut [bf16]) {
        same_length!(src, dst);
        // SAFETY: see the impl.
        unsafe { (self.f32_to_bf16)(src, dst) }
    }

    /// A row as Q8_0 blocks: of every 32 elements an f16 scale, the largest magnitude / 127, and 32 codes.
    ///
    /// # Panics
    /// When `src` is not whole blocks, or `dst` not 34 bytes for each.
    pub fn quantize_q8_0_row(&self, src: &[f32], dst: &mut [u8]) {
        check_q8_0(src.len(), dst.len());
        // SAFETY: see the impl.
        unsafe { (self.quantize_q8_0)(src, dst) }
    }

    /// A row of Q8_0 blocks as f32.
    ///
    /// # Panics
    /// When `dst` is not whole blocks, or `src` not 34 bytes for each.
    pub fn q8_0_to_f32(&self, src: &[u8], dst: &mut [f32]) {
        check_q8_0(dst.len(), src.len());
        // SAFETY: see the impl.
        unsafe { (self.q8_0_to_f32)(src, dst) }
    }

    /// Rotates the pairs `(2p, 2p + 1)` of one head by the angles whose cosines and sines are given; elements from
    /// `2 * cos.len()` on stay as they are. The order of `llama` tensors in GGUF. RoFormer, arXiv 2104.09864.
    pub fn rope_norm(&self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        same_length!(cos, sin);
        assert!(2 * cos.len() <= x.len(), "{} pairs to rotate in a head of {}", cos.len(), x.len());
        // SAFETY: see the impl.
        unsafe { (self.rope_norm)(x, cos, sin) }
    }

    /// As [`Self::rope_norm`] with the pairs `(p, p + cos.len())`: the order of GPT-NeoX, Qwen, Gemma and Phi.
    pub fn rope_neox(&self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        same_length!(cos, sin);
        assert!(2 * cos.len() <= x.len(), "{} pairs to rotate in a head of {}", cos.len(), x.len());
        // SAFETY: see the impl.
        unsafe { (self.rope_neox)(x, cos, sin) }
    }

    /// `c[i][j] = alpha * a[i] . b[j]` for `a` of m rows, `b` of n rows, `c` of m rows of n.
    /// Each sum runs in an order that depends on the rows' length alone.
    pub fn sgemm_nt(&self, alpha: f32, a: Rows<f32>, b: Rows<f32>, c: RowsMut<f32>) {
        assert_eq!(a.len(), b.len(), "row lengths of the factors differ");
        assert_eq!((a.n_rows(), b.n_rows()), (c.n_rows(), c.len()), "the result is of another shape than the product");
        // SAFETY: see the impl.
        unsafe { (self.sgemm_nt)(alpha, a, b, c) }
    }

    /// `out[i] = alpha * sum_j p[i][j] * v[j]` for `p` of m rows of n, `v` of n rows, `out` of m rows no longer than those of `v`: attention
    /// scores, `v` being transposed keys. The sum runs over j in order.
    pub fn sgemm_nn(&self, alpha: f32, p: Rows<f32>, v: Rows<f32>, out: RowsMut<f32>) {
        check_scores(&p, &v, &out);
        // SAFETY: see the impl.
        unsafe { (self.sgemm_nn)(alpha, p, v, out) }
    }

    /// [`Self::sgemm_nn`] with `k` in f16, to the same bits as with `k` converted beforehand.
    pub fn scores_f16(&self, alpha: f32, q: Rows<f32>, k: Rows<f16>, out: RowsMut<f32>) {
        check_scores(&q, &k, &out);
        // SAFETY: see the impl.
        unsafe { (self.scores_f16)(alpha, q, k, out) }
    }

    /// [`Self::sgemm_nn`] with keys in Q8_0, from key `first` of the group on; each block's scale is applied to its sum.
    pub fn scores_q8_0(&self, alpha: f32, q: Rows<f32>, k: &[KeysQ8_0], first: usize, out: RowsMut<f32>) {
        assert_eq!(q.len(), k.len() * KeysQ8_0::LEN, "queries and keys are not of one length");
        assert!(
            q.n_rows() == out.n_rows() && first + out.len() <= KEY_GROUP,
            "the result is of another shape than the product"
        );
        // SAFETY: see the impl.
        unsafe { (self.scores_q8_0)(alpha, q, k, first, out) }
    }

    /// `out[i] += sum_j p[i][j] * v[j]` for `p` of m rows of n, `v` of n rows of d, `out` of m rows of d: attention's
    /// weighted values. The sum runs over j in order and starts from `out`, so splitting n over several calls changes
    /// nothing. A NaN or infinity in `v` comes through even where its weight is 0.
    pub fn sgemm_nn_acc(&self, p: Rows<f32>, v: Rows<f32>, out: RowsMut<f32>) {
        check_nn(&p, &v, &out);
        // SAFETY: see the impl.
        unsafe { (self.sgemm_nn_acc)(p, v, out) }
    }

    /// The network over the heads applied to every column of `x`, a row per input head: `out` gets a row per output head. `units`
    /// is work space, [`UNIT_FLOATS`] for each hidden unit.
    pub fn align_heads(&self, net: &HeadNet, x: Rows<f32>, units: &mut [f32], out: RowsMut<f32>) {
        let (n_in, n_hidden, n_out) = (x.n_rows(), net.bias.len(), out.n_rows());
        assert_eq!(x.len(), out.len(), "input and output have different numbers of columns");
        assert_eq!(net.skip.len(), n_out * n_in, "skip is not {n_in} x {n_out}");
        assert_eq!(net.up.len(), n_hidden * n_in, "up is not {n_in} x {n_hidden}");
        assert_eq!(net.down.len(), n_out * n_hidden, "down is not {n_hidden} x {n_out}");
        assert!(units.len() >= n_hidden * UNIT_FLOATS, "work space for {n_hidden} hidden units is too small");
        // SAFETY: see the impl.
        unsafe { (self.align_heads)(net, x, units, out) }
    }

    /// The gated delta rule (arXiv 2412.06464): for each token the state is multiplied with `decay`; `step` times the difference between `v` and
    /// what it has for `k`, their product, is added, `k` times it to each row; and its product with `q` is a row of `out`.
    pub fn delta_rule(&self, update: StateUpdate) {
        update.check();
        if !update.rates.is_empty() {
            // SAFETY: see the impl.
            unsafe { (self.delta_rule)(update) }
        }
    }

    /// [`FloatKernels::delta_rule`] where every row of the state, one for each element of a key, is multiplied with a decay of its own in the place of
    /// the rates': `decays` has a row of them for each token (Kimi Delta Attention, arXiv 2510.26692).
    pub fn keyed_delta_rule(&self, update: StateUpdate, decays: Rows<f32>) {
        update.check();
        assert_eq!(
            [decays.n_rows(), decays.len()],
            [update.rates.len(), update.k.len()],
            "decays are not as many as keys"
        );
        if !update.rates.is_empty() {
            // SAFETY: see the impl.
            unsafe { (self.keyed_delta_rule)(update, decays) }
        }
    }

    /// The selective scan of Mamba-2 (arXiv 2405.21060): for each token the state is multiplied with `decay`; `step` times `v` is added, `k` times it
    /// to each row; and its product with `q` is a row of `out`.
    pub fn selective_scan(&self, update: StateUpdate) {
        update.check();
        if !update.rates.is_empty() {
            // SAFETY: see the impl.
            unsafe { (self.selective_scan)(update) }
        }
    }

    /// The selective scan of the first Mamba (arXiv 2312.00752): for each token every element of the state is multiplied with `e` to the power of its
    /// rate times its channel's step; that step times `v` is added, `k` times it to each row; and the state's product with `q` is a row of `out`.
    pub fn channel_scan(&self, update: ChannelUpdate) {
        update.check();
        // SAFETY: see the impl.
        unsafe { (self.channel_scan)(update) }
    }

    /// A memory that fades element by element of a key (RWKV-6 and 7): for each token every row of the state is multiplied with its rate; `v` is added,
    /// `k` times it to each row; and, where the token moves something, what the state had for the first key, the second times it to each row. The
    /// state's product with `q`, before that or after it, is a row of `out`.
    pub fn keyed_scan(&self, update: KeyedUpdate) {
        update.check();
        // SAFETY: see the impl.
        unsafe { (self.keyed_scan)(update) }
    }

    /// [`Self::sgemm_nn_acc`] with `v` in f16, to the same bits as with `v` converted beforehand.
    pub fn values_f16(&self, p: Rows<f32>, v: Rows<f16>, out: RowsMut<f32>) {
        check_nn(&p, &v, &out);
        // SAFETY: see the impl.
        unsafe { (self.values_f16)(p, v, out) }
    }

    /// [`Self::sgemm_nn_acc`] with `v` in Q8_0, to the same bits as with `v` converted beforehand.
    pub fn values_q8_0(&self, p: Rows<f32>, v: Rows<BlockQ8_0>, out: RowsMut<f32>) {
        check_nn(&p, &v, &out);
        // SAFETY: see the impl.
        unsafe { (self.values_q8_0)(p, v, out) }
    }
}

fn check_q8_0(n: usize, bytes: usize) {
    assert!(n.is_multiple_of(convert::Q8_0_LEN), "{n} elements are not whole Q8_0 blocks");
    assert_eq!(bytes, n / convert::Q8_0_LEN * convert::Q8_0_BYTES, "bytes for {n} elements of Q8_0");
}

fn check_nn<B: Elem>(p: &Rows<f32>, v: &Rows<B>, out: &RowsMut<f32>) {
    check_scores(p, v, out);
    assert_eq!(v.len() * B::LEN, out.len(), "the result is of another shape than the product");
}

/// As [`check_nn`], but the rows of `v` may be longer than the result's.
fn check_scores<B: Elem>(p: &Rows<f32>, v: &Rows<B>, out: &RowsMut<f32>) {
    assert_eq!(p.len(), v.n_rows(), "row length of p and number of rows of v differ");
    assert!(
        p.n_rows() == out.n_rows() && out.len() <= v.len() * B::LEN,
        "the result is of another shape than the product"
    );
}
