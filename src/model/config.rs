//! A model's hyper-parameters, read from the file's metadata and checked before anything depends on them.

use ggml_ext::gguf::Gguf;

use super::{Family, Norms, Windows};
use crate::attention::RopeScaling;
use crate::{Error, Result};

/// How many experts are chosen for a token.
pub(super) const USED: &str = "expert_used_count";
/// Positions that layers with windows attend to, and which layers these are.
const WINDOW: &str = "attention.sliding_window";
const PATTERN: &str = "attention.sliding_window_pattern";
/// Query heads.
const N_HEAD: &str = "attention.head_count";

/// Typed access to `<architecture>.<key>` metadata with errors that name the key.
pub struct Keys<'g, 'a> {
    gguf: &'g Gguf<'a>,
    file: &'g str,
    arch: &'a str,
}

impl<'g, 'a> Keys<'g, 'a> {
    /// Keys of the architecture that the file names.
    pub fn new(gguf: &'g Gguf<'a>, file: &'g str) -> Result<Self> {
        let arch = gguf
            .str("general.architecture")
            .map_err(|e| gguf_error(file, e))?
            .ok_or_else(|| model_error(file, "key general.architecture is missing"))?;
        Ok(Self { gguf, file, arch })
    }

    /// The value of `general.architecture`.
    pub fn arch(&self) -> &'a str {
        self.arch
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    /// An error about `<architecture>.<key>`.
    pub fn error(&self, key: &str, what: impl std::fmt::Display) -> Error {
        model_error(self.file, format!("key {}: {what}", self.key(key)))
    }

    /// An optional count.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        let value = self.gguf.u32(&self.key(key)).map_err(|e| gguf_error(self.file, e))?;
        Ok(value.map(|v| v as usize))
    }

    /// A count that must be there and not be zero nor above `max`.
    pub fn required(&self, key: &str, max: usize) -> Result<usize> {
        let n = self.count(key)?.ok_or_else(|| model_error(self.file, format!("key {} is missing", self.key(key))))?;
        if n == 0 || n > max {
            return Err(self.error(key, format_args!("{n} is out of range, expected 1 to {max}")));
        }
        Ok(n)
    }

    /// Layers that a token passes through. Files may have some more, which guess the token after the next (multi-token prediction) and are
    /// counted with them.
    pub fn n_layer(&self) -> Result<usize> {
        const GUESSING: &str = "nextn_predict_layers";
        let (all, n_guessing) = (self.required("block_count", MAX_LAYERS)?, self.count(GUESSING)?.unwrap_or(0));
        match all.checked_sub(n_guessing) {
            Some(n) if n > 0 => Ok(n),
            _ => Err(self.error(GUESSING, format_args!("{n_guessing} of {all} layers, expected fewer than all"))),
        }
    }

    /// A count given once or per layer; all layers must agree: for families and numbers that do not vary.
    pub fn uniform(&self, key: &str) -> Result<Option<usize>> {
        let full = self.key(key);
        if !matches!(self.gguf.get(&full), Some(ggml_ext::gguf::Value::Array(_))) {
            return self.count(key);
        }
        let all = self.gguf.u32s(&full).map_err(|e| gguf_error(self.file, e))?.unwrap_or_default();
        match all.first() {
            Some(first) if all.iter().all(|v| v == first) => Ok(Some(*first as usize)),
            _ => Err(self.error(key, "differs from layer to layer, which is not supported")),
        }
    }

    /// Numbers, none where the key is missing.
    pub fn numbers(&self, key: &str) -> Result<Vec<u32>> {
        let values = self.gguf.u32s(&self.key(key)).map_err(|e| gguf_error(self.file, e))?;
        Ok(values.unwrap_or_default())
    }

    /// Counts given once or per layer.
    pub fn per_layer(&self, key: &str, n_layer: usize) -> Result<Option<Vec<usize>>> {
        let is_array = matches!(self.gguf.get(&self.key(key)), Some(ggml_ext::gguf::Value::Array(_)));
        let all: Vec<usize> = match is_array {
            true => self.numbers(key)?.iter().map(|&n| n as usize).collect(),
            false => match self.count(key)? {
                Some(n) => vec![n; n_layer],
                None => return Ok(None),
            },
        };
        if all.len() < n_layer {
            return Err(self.error(key, format_args!("has {} values, expected one per layer: {n_layer}", all.len())));
        }
        match all.iter().find(|&&n| n > MAX_WIDTH) {
            Some(n) => Err(self.error(key, format_args!("{n} is out of range, expected at most {MAX_WIDTH}"))),
            None => Ok(Some(all[..n_layer].to_vec())),
        }
    }

    /// [`Keys::per_layer`], which must be there.
    fn of_layers(&self, key: &str, n_layer: usize) -> Result<Vec<usize>> {
        self.per_layer(key, n_layer)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// That `n_head` query heads divide among `n_head_kv` key/value heads, those of `layer` where layers differ.
    pub fn check_heads(&self, n_head_kv: usize, n_head: usize, layer: Option<usize>) -> Result<()> {
        if n_head_kv == 0 || n_head == 0 || !n_head.is_multiple_of(n_head_kv) {
            let place = layer.map_or(String::new(), |i| format!(" in layer {i}"));
            let what = format_args!("{n_head_kv}{place} does not divide the {n_head} query heads");
            return Err(self.error("attention.head_count_kv", what));
        }
        Ok(())
    }

    /// That `n_rot` values of a head of `head_dim` can rotate.
    pub fn check_rotating(&self, key: &str, n_rot: usize, head_dim: usize) -> Result<()> {
        if n_rot == 0 || !n_rot.is_multiple_of(2) || n_rot > head_dim {
            let what = format_args!("{n_rot} is not an even number from 2 to the head size {head_dim}");
            return Err(self.error(key, what));
        }
        Ok(())
    }

    /// An optional width, the same for all layers, that must not be 0.
    fn positive_width(&self, key: &str) -> Result<Option<usize>> {
        match self.uniform(key)? {
            Some(n) if n == 0 || n > MAX_WIDTH => {
                Err(self.error(key, format_args!("{n} is out of range, expected 1 to {MAX_WIDTH}")))
            }
            n => Ok(n),
        }
    }

    /// An optional width, the same for all layers; 0 stands for none.
    pub fn width(&self, key: &str) -> Result<Option<usize>> {
        match self.uniform(key)?.filter(|&n| n > 0) {
            Some(n) if n > MAX_WIDTH => {
                Err(self.error(key, format_args!("{n} is out of range, expected at most {MAX_WIDTH}")))
            }
            n => Ok(n),
        }
    }

    /// An optional finite number.
    pub fn float(&self, key: &str) -> Result<Option<f32>> {
        let value = self.gguf.f32(&self.key(key)).map_err(|e| gguf_error(self.file, e))?;
        match value {
            Some(v) if !v.is_finite() => Err(self.error(key, format_args!("{v} is not a finite number"))),
            v => Ok(v),
        }
    }

    /// An optional number that must be positive.
    pub fn positive(&self, key: &str) -> Result<Option<f32>> {
        match self.float(key)? {
            Some(v) if v <= 0.0 => Err(self.error(key, format_args!("{v} is not positive"))),
            v => Ok(v),
        }
    }

    /// An optional flag.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.gguf.bool(&self.key(key)).map_err(|e| gguf_error(self.file, e))
    }

    /// Optional flags, one per layer; `None` too where the key holds a single value.
    pub fn flags(&self, key: &str, n_layer: usize) -> Result<Option<Vec<bool>>> {
        let full = self.key(key);
        if !matches!(self.gguf.get(&full), Some(ggml_ext::gguf::Value::Array(_))) {
            return Ok(None);
        }
        // Some converters write numbers.
        let flags = match self.gguf.u32s(&full) {
            Ok(numbers) => numbers.unwrap_or_default().into_iter().map(|n| n != 0).collect(),
            Err(_) => self.gguf.bools(&full).map_err(|e| gguf_error(self.file, e))?.unwrap_or_default(),
        };
        if flags.len() < n_layer {
            return Err(self.error(key, format_args!("has {} values, expected one per layer: {n_layer}", flags.len())));
        }
        Ok(Some(flags))
    }

    /// Hidden units of every layer's network; there may be none.
    pub fn hidden_units(&self, n_layer: usize) -> Result<Vec<usize>> {
        self.of_layers("feed_forward_length", n_layer)
    }

    /// How many experts every layer chooses for a token; layers without any may say 0.
    pub fn experts_used(&self, n_layer: usize) -> Result<Vec<usize>> {
        self.of_layers(USED, n_layer)
    }

    /// That so many of `n_expert` can be chosen.
    pub fn check_experts_used(&self, n: usize, n_expert: usize) -> Result<()> {
        match (1..=n_expert).contains(&n) {
            true => Ok(()),
            false => Err(self.error(USED, format_args!("{n} is out of range, expected 1 to {n_expert}"))),
        }
    }

    /// Query heads and key/value heads of every layer; either may be none.
    pub fn heads(&self, n_layer: usize) -> Result<Vec<[usize; 2]>> {
        let n_head = self.of_layers(N_HEAD, n_layer)?;
        let n_head_kv = self.per_layer("attention.head_count_kv", n_layer)?.unwrap_or_else(|| n_head.clone());
        Ok(n_head.into_iter().zip(n_head_kv).map(|(n, n_kv)| [n, n_kv]).collect())
    }

    /// Key/value heads of every layer: none where a hybrid has no attention.
    pub fn heads_kv(&self, n_layer: usize) -> Result<Vec<usize>> {
        self.of_layers("attention.head_count_kv", n_layer)
    }

    /// For each layer whether it has a state in the place of attention.
    pub fn recurrent_layers(&self, n_layer: usize) -> Result<Vec<bool>> {
        ggml_ext::lisa::recurrent_layers(self.gguf, n_layer).map_err(|e| model_error(self.file, e))
    }

    /// How many positions each layer attends to, where most have a sliding window (`window` positions where the file does not say) and
    /// every `pattern`-th sees the whole context, unless the file gives another number (0: none of them does), or flags of its own.
    pub fn alternating_windows(&self, n_layer: usize, window: Option<usize>, pattern: usize) -> Result<Windows> {
        self.windows(n_layer, window, pattern, 1)
    }

    /// The same where those that see the whole context come first, from the first layer on.
    pub fn windows_after_global(&self, n_layer: usize, window: Option<usize>, pattern: usize) -> Result<Windows> {
        self.windows(n_layer, window, pattern, 0)
    }

    /// The same where files must say how long windows are and which layers have them.
    pub fn flagged_windows(&self, n_layer: usize) -> Result<Windows> {
        let window = self.required(WINDOW, MAX_WIDTH)?;
        let flags = self.flags(PATTERN, n_layer)?.ok_or_else(|| self.error(PATTERN, "is missing or not an array"))?;
        Ok(flags[..n_layer].iter().map(|&is_local| is_local.then_some(window)).collect())
    }

    /// The same where the number of the first layer is `first`, and multiples see the whole context.
    fn windows(&self, n_layer: usize, window: Option<usize>, pattern: usize, first: usize) -> Result<Windows> {
        let window = self.count(WINDOW)?.or(window).filter(|&n| n > 0);
        let flags = self.flags(PATTERN, n_layer)?;
        let pattern = if flags.is_none() { self.count(PATTERN)?.unwrap_or(pattern) } else { 0 };
        let is_local = |i: usize| flags.as_ref().map_or(pattern == 0 || !(i + first).is_multiple_of(pattern), |f| f[i]);
        Ok((0..n_layer).map(|i| window.filter(|_| is_local(i))).collect())
    }

    /// Numbers given per layer, infinite ones among them; none where the key is missing.
    pub fn layer_floats(&self, key: &str, n_layer: usize) -> Result<Option<Vec<f32>>> {
        match self.gguf.f32s(&self.key(key)).map_err(|e| gguf_error(self.file, e))? {
            Some(all) if all.len() < n_layer => {
                Err(self.error(key, format_args!("has {} values, expected one per layer: {n_layer}", all.len())))
            }
            all => Ok(all.map(|all| all[..n_layer].to_vec())),
        }
    }

    /// Finite numbers given once or per layer.
    pub fn floats_of_layers(&self, key: &str, n_layer: usize) -> Result<Option<Vec<f32>>> {
        let full = self.key(key);
        self.gguf.get(&full).map(|_| self.common_floats(&full, n_layer)).transpose()
    }

    /// Numbers given once or per layer, under a `key` that does not begin with the architecture.
    pub fn common_floats(&self, key: &str, n_layer: usize) -> Result<Vec<f32>> {
        let error = |what: String| model_error(self.file, format!("key {key}: {what}"));
        let all = match self.gguf.get(key) {
            None => return Err(model_error(self.file, format!("key {key} is missing"))),
            Some(ggml_ext::gguf::Value::Array(_)) => self.gguf.f32s(key).map(Option::unwrap_or_default),
            Some(_) => self.gguf.f32(key).map(|one| one.map(|v| vec![v; n_layer]).unwrap_or_default()),
        };
        let all = all.map_err(|e| gguf_error(self.file, e))?;
        match all.iter().find(|v| !v.is_finite()) {
            Some(v) => Err(error(format!("{v} is not a finite number"))),
            None if all.len() < n_layer => {
                Err(error(format!("has {} values, expected one per layer: {n_layer}", all.len())))
            }
            None => Ok(all),
        }
    }

    /// An optional string.
    pub fn str(&self, key: &str) -> Result<Option<&'a str>> {
        self.gguf.str(&self.key(key)).map_err(|e| gguf_error(self.file, e))
    }
}

pub(super) fn model_error(file: &str, what: impl std::fmt::Display) -> Error {
    Error::Model { file: file.into(), what: what.to_string() }
}

pub(super) fn gguf_error(file: &str, source: ggml_ext::gguf::GgufError) -> Error {
    Error::Gguf { file: file.into(), source }
}

/// Hyper-parameters that every family has.
#[derive(Debug, Clone)]
pub struct Config {
    /// `general.architecture`.
    pub arch: String,
    /// Decoder layers.
    pub n_layer: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Width of the feed-forward network, of the widest where layers differ.
    pub n_ff: usize,
    /// Experts of a layer, 0 where there is one network.
    pub n_expert: usize,
    /// How many of them are chosen for a token, the most in any layer where these differ.
    pub n_expert_used: usize,
    /// Query heads, the most of any layer where these differ.
    pub n_head: usize,
    /// Key/value heads, the same.
    pub n_head_kv: usize,
    /// Length of a query or key head.
    pub head_dim_k: usize,
    /// Length of a value head.
    pub head_dim_v: usize,
    /// Dimensions of a head that rotate.
    pub n_rot: usize,
    /// Whether norms are LayerNorm.
    pub layer_norm: bool,
    /// The norms' epsilon.
    pub norm_eps: f32,
    /// Context the model was trained for.
    pub n_ctx_train: usize,
    /// RoPE's frequency base.
    pub rope_base: f32,
    /// RoPE's stretching.
    pub rope_scaling: RopeScaling,
    /// RoPE's magnitude (`rope.scaling.attn_factor`, and `rope.scaling.yarn_attn_factor`).
    pub rope_magnitude: f32,
    /// Context before stretching, where the file gives it.
    pub n_ctx_orig: usize,
}

/// Bounds far above any model and far below overflow.
pub(super) const MAX_LAYERS: usize = 1 << 12;
pub(super) const MAX_WIDTH: usize = 1 << 22;
const MAX_EXPERTS: usize = 1 << 12;
/// Longest head: several times any model's.
pub(super) const MAX_HEAD_DIM: usize = 1024;

impl Config {
    /// Reads the keys common to all families. Whether layers may have different numbers of heads and hidden units, and which epsilon
    /// matters, is up to `family`.
    ///
    /// # Errors
    /// Names the key that is missing, of another type or out of range.
    pub fn read(keys: &Keys, family: &Family) -> Result<Self> {
        let n_expert = keys.count("expert_count")?.unwrap_or(0);
        if n_expert > MAX_EXPERTS {
            return Err(
                keys.error("expert_count", format_args!("{n_expert} is out of range, expected 0 to {MAX_EXPERTS}"))
            );
        }
        let n_layer = keys.n_layer()?;
        let n_expert_used = match n_expert {
            0 => 0,
            _ => {
                let most = keys.experts_used(n_layer)?.into_iter().max().unwrap_or(0);
                keys.check_experts_used(most, n_expert)?;
                most
            }
        };
        let n_embd = keys.required("embedding_length", MAX_WIDTH)?;
        let n_ctx_train = keys.required("context_length", 1 << 30)?;
        let uniform = |key: &str| keys.positive_width(key);
        let missing = |key: &str| keys.error(key, "is missing");
        let most = |key: &str| match family.varies {
            true => {
                Ok::<_, Error>(keys.per_layer(key, n_layer)?.and_then(|all| all.into_iter().max()).filter(|&n| n > 0))
            }
            false if !family.attends => Ok(None),
            false => uniform(key),
        };
        let n_ff = match most("feed_forward_length")? {
            Some(n) => n,
            // A model may have experts alone.
            None if n_expert > 0 => 0,
            None if !family.attends => 0,
            None => return Err(missing("feed_forward_length")),
        };
        let heads = match family.attends {
            true => {
                let n_head = if family.heads_vary { most(N_HEAD)? } else { uniform(N_HEAD)? };
                Heads::read(keys, n_embd, n_head, most("attention.head_count_kv")?)?
            }
            false => Heads::default(),
        };
        // Those of different layers need not fit each other.
        if family.attends && !family.heads_vary {
            keys.check_heads(heads.n_head_kv, heads.n_head, None)?;
        }
        const RMS_EPS: &str = "attention.layer_norm_rms_epsilon";
        let layer_norm = match family.norms {
            Norms::Rms => false,
            Norms::Layer => true,
            Norms::Either => keys.float(RMS_EPS)?.is_none_or(|eps| eps == 0.0),
        };
        let key_of_eps = if layer_norm { "attention.layer_norm_epsilon" } else { RMS_EPS };
        let norm_eps = keys.float(key_of_eps)?.ok_or_else(|| missing(key_of_eps))?;
        if norm_eps < 0.0 {
            return Err(keys.error(key_of_eps, format_args!("{norm_eps} is negative")));
        }
        let n_ctx_orig = keys.count("rope.scaling.original_context_length")?.filter(|&n| n > 0).unwrap_or(n_ctx_train);
        let rope_scaling = rope_scaling(keys, n_ctx_orig)?;
        Ok(Self {
            arch: keys.arch().into(),
            n_layer,
            n_embd,
            n_ff,
            n_expert,
            n_expert_used,
            n_head: heads.n_head,
            n_head_kv: heads.n_head_kv,
            head_dim_k: heads.head_dim_k,
            head_dim_v: heads.head_dim_v,
            n_rot: heads.n_rot,
            layer_norm,
            norm_eps,
            n_ctx_train,
            rope_base: keys.positive("rope.freq_base")?.unwrap_or(10_000.0),
            rope_magnitude: rope_magnitude(keys, &rope_scaling)?,
            rope_scaling,
            n_ctx_orig,
        })
    }
}

/// The heads of attention; none in families without it.
#[derive(Default)]
struct Heads {
    n_head: usize,
    n_head_kv: usize,
    head_dim_k: usize,
    head_dim_v: usize,
    n_rot: usize,
}

impl Heads {
    fn read(keys: &Keys, n_embd: usize, n_head: Option<usize>, n_head_kv: Option<usize>) -> Result<Self> {
        let n_head = n_head.ok_or_else(|| keys.error(N_HEAD, "is missing"))?;
        let n_head_kv = n_head_kv.unwrap_or(n_head);
        let head_dim = |key: &str| match keys.positive_width(key)? {
            None if !n_embd.is_multiple_of(n_head) => {
                Err(keys.error(key, format_args!("is missing and {n_head} heads do not divide {n_embd}")))
            }
            n => match n.unwrap_or(n_embd / n_head) {
                n if n > MAX_HEAD_DIM => {
                    Err(keys.error(key, format_args!("head size {n} is above the {MAX_HEAD_DIM} supported")))
                }
                n => Ok(n),
            },
        };
        let head_dim_k = head_dim("attention.key_length")?;
        let head_dim_v = head_dim("attention.value_length")?;
        let n_rot = keys.count("rope.dimension_count")?.unwrap_or(head_dim_k);
        keys.check_rotating("rope.dimension_count", n_rot, head_dim_k)?;
        Ok(Self { n_head, n_head_kv, head_dim_k, head_dim_v, n_rot })
    }
}

/// The factor on rotated values that the file gives. YaRN's own replaces one of its two wherever it extrapolates, as in llama.cpp.
fn rope_magnitude(keys: &Keys, scaling: &RopeScaling) -> Result<f32> {
    let factor = keys.positive("rope.scaling.attn_factor")?.unwrap_or(1.0);
    let of_yarn = keys.positive("rope.scaling.yarn_attn_factor")?.unwrap_or(1.0);
    let replaced = matches!(scaling, RopeScaling::Yarn { ext_factor, .. } if *ext_factor != 0.0);
    Ok(if replaced { factor } else { factor * of_yarn })
}

fn rope_scaling(keys: &Keys, n_ctx_orig: usize) -> Result<RopeScaling> {
    // Old files give the linear factor alone, under another name.
    let factor = match keys.float("rope.scaling.factor")? {
        Some(f) => Some(f),
        None => keys.float("rope.scale_linear")?,
    };
    // Zero and one both stand for "not stretched".
    let factor = factor.filter(|&f| f != 0.0).unwrap_or(1.0);
    if factor < 0.0 {
        return Err(keys.error("rope.scaling.factor", format_args!("{factor} is negative")));
    }
    let float = |key: &str, default: f32| Ok::<_, Error>(keys.float(key)?.unwrap_or(default));
    Ok(match keys.str("rope.scaling.type")?.unwrap_or("linear") {
        "none" | "longrope" => RopeScaling::None,
        "linear" if factor == 1.0 => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor },
        "yarn" => RopeScaling::Yarn {
            factor,
            n_ctx_orig,
            ext_factor: float("rope.scaling.yarn_ext_factor", 1.0)?,
            beta_fast: float("rope.scaling.yarn_beta_fast", 32.0)?,
            beta_slow: float("rope.scaling.yarn_beta_slow", 1.0)?,
        },
        "llama3" => RopeScaling::Llama3 {
            factor,
            n_ctx_orig,
            low_freq_factor: float("rope.scaling.low_freq_factor", 1.0)?,
            high_freq_factor: float("rope.scaling.high_freq_factor", 4.0)?,
        },
        other => {
            let what = format_args!("unknown kind '{other}', expected none, linear, yarn, longrope or llama3");
            return Err(keys.error("rope.scaling.type", what));
        }
    })
}
