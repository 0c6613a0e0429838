//! Flags that put other metadata in place of the model file's: `--override-kv` for any key, and those about RoPE and YaRN, which name
//! keys of the architecture.

use clap::{Args, ValueEnum};
use lisa_cpp::model::{Override, OverrideValue};

/// What the model's metadata say instead of what is in the file.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Model")]
pub struct OverrideArgs {
    /// Give the model's metadata other values; types: int, float, bool, str
    #[arg(long, value_name = "KEY=TYPE:VALUE", value_delimiter = ',')]
    override_kv: Vec<Override>,
    /// How RoPE is stretched to longer contexts [default: as the model says, else linear]
    #[arg(long, value_name = "METHOD", value_enum, hide_short_help = true)]
    rope_scaling: Option<RopeScalingArg>,
    /// Stretch contexts by a factor of N
    #[arg(long, value_name = "N", value_parser = positive, hide_short_help = true)]
    rope_scale: Option<f32>,
    /// RoPE's base frequency [default: the model's]
    #[arg(long, value_name = "N", value_parser = positive, hide_short_help = true)]
    rope_freq_base: Option<f32>,
    /// Stretch contexts by a factor of 1/N
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with = "rope_scale", hide_short_help = true)]
    rope_freq_scale: Option<f32>,
    /// YaRN: the context the model was made for [default: the model's]
    #[arg(long, value_name = "N", hide_short_help = true)]
    yarn_orig_ctx: Option<u32>,
    /// YaRN: mix of extrapolation, 0: interpolation alone [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true, hide_short_help = true)]
    yarn_ext_factor: Option<f32>,
    /// YaRN: factor of the magnitude, where nothing is extrapolated (--yarn-ext-factor 0) [default: 1]
    #[arg(long, value_name = "N", value_parser = positive, hide_short_help = true)]
    yarn_attn_factor: Option<f32>,
    /// YaRN: rotations within the original context up to which a dimension is interpolated [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true, hide_short_help = true)]
    yarn_beta_slow: Option<f32>,
    /// YaRN: rotations from which on a dimension is left as it is [default: 32]
    #[arg(long, value_name = "N", allow_negative_numbers = true, hide_short_help = true)]
    yarn_beta_fast: Option<f32>,
}

/// A way of stretching RoPE on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum RopeScalingArg {
    None,
    Linear,
    Yarn,
}

fn positive(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(v) if v > 0.0 && f32::is_finite(v) => Ok(v),
        _ => Err("expected a positive number".into()),
    }
}

impl OverrideArgs {
    /// All of them, those of `--override-kv` last, so that they win.
    pub fn all(&self) -> Vec<Override> {
        let set = |key: &str, value| Override::new(format!(".rope.{key}"), value);
        let float = |key: &str, v: Option<f32>| Some(set(key, OverrideValue::Float(v?)));
        // Less than nothing stands for the model's own, as in llama.cpp.
        let given = |v: Option<f32>| v.filter(|&v| v >= 0.0);
        let scaling =
            self.rope_scaling.and_then(|s| Some(OverrideValue::Str(s.to_possible_value()?.get_name().into())));
        let rope = [
            scaling.map(|s| set("scaling.type", s)),
            float("scaling.factor", self.rope_scale.or(self.rope_freq_scale.map(f32::recip))),
            float("freq_base", self.rope_freq_base),
            self.yarn_orig_ctx
                .filter(|&n| n > 0)
                .map(|n| set("scaling.original_context_length", OverrideValue::Int(n.into()))),
            float("scaling.yarn_ext_factor", given(self.yarn_ext_factor)),
            float("scaling.yarn_attn_factor", self.yarn_attn_factor),
            float("scaling.yarn_beta_slow", given(self.yarn_beta_slow)),
            float("scaling.yarn_beta_fast", given(self.yarn_beta_fast)),
        ];
        rope.into_iter().flatten().chain(self.override_kv.iter().cloned()).collect()
    }
}
