//! Families with LayerNorm in place of RMSNorm: those from before it, and those that stayed with it. Many have biases, feed-forward
//! networks without gates, or halves of a layer that start from the same input: GPT-NeoX and Pythia, Falcon, Phi-1 and 2, StarCoder 2, CodeShell, Jais 2,
//! StableLM, Orion, Nemotron, Command R and R7B.

use super::Family;
use super::builder::{Builder, QkNorm};
use super::config::Keys;
use super::decoder::{ContextRope, Decoder, Layer};
use super::{Windows, no_windows};
use crate::Result;
use crate::attention::{AttentionShape, Rope, RopeStyle};
use crate::compute::Act;

/// The registry row of GPT-NeoX.
pub const GPTNEOX: Family = family("gptneox", |b| {
    let parallel = b.keys.flag("use_parallel_residual")?;
    let parallel = parallel.ok_or_else(|| b.keys.error("use_parallel_residual", "is missing"))?;
    build(b, &Traits { halves: if parallel { Halves::Parallel } else { Halves::InTurn }, ..UNGATED })
});
/// The registry row of Falcon.
pub const FALCON: Family = family("falcon", |b| build(b, &Traits { halves: Halves::Parallel, ..UNGATED }));
/// The registry row of Phi-1 and 2.
pub const PHI2: Family = family("phi2", |b| build(b, &Traits { halves: Halves::Parallel, ..UNGATED }));
/// The registry row of StarCoder 2.
pub const STARCODER2: Family = family("starcoder2", |b| build(b, &UNGATED));
/// The registry row of CodeShell.
pub const CODESHELL: Family = family("codeshell", |b| build(b, &UNGATED));
/// The registry row of Nemotron.
pub const NEMOTRON: Family = family("nemotron", |b| build(b, &Traits { act: Act::ReluSquared, ..UNGATED }));
/// The registry row of Jais 2.
pub const JAIS2: Family = Family { arch: "jais2", ..NEMOTRON };
/// The registry row of StableLM, whose largest model has one norm for both halves, and norms on queries and keys.
pub const STABLELM: Family =
    family("stablelm", |b| build(b, &Traits { halves: Halves::AsNormed, norm: QkNorm::OwnIfAny, ..GATED }));
/// The registry row of Orion.
pub const ORION: Family = family("orion", |b| build(b, &GATED));
/// The registry row of Command R and R+; the latter, told by its depth, has norms on queries and keys.
pub const COMMAND_R: Family = family("command-r", |b| {
    let norm = if b.config.n_layer >= N_LAYER_R_PLUS { QkNorm::Own } else { QkNorm::None };
    build(b, &Traits { norm, ..COHERE })
});
/// The registry row of Command R7B and A.
pub const COHERE2: Family = family("cohere2", |b| build(b, &COHERE)).with_windows(windows);

const N_LAYER_R_PLUS: usize = 64;

const fn family(arch: &'static str, build: fn(&mut Builder) -> Result<Decoder>) -> Family {
    Family::new(arch, build).with_layer_norm()
}

/// How the halves of a layer follow.
enum Halves {
    /// One after the other.
    InTurn,
    /// Both from the layer's input.
    Parallel,
    /// One after the other, if the second has a norm of its own.
    AsNormed,
}

/// What sets the families apart.
struct Traits {
    style: RopeStyle,
    norm: QkNorm,
    gated: bool,
    act: Act,
    halves: Halves,
}

const UNGATED: Traits =
    Traits { style: RopeStyle::Neox, norm: QkNorm::None, gated: false, act: Act::Gelu, halves: Halves::InTurn };
const GATED: Traits = Traits { gated: true, act: Act::Silu, ..UNGATED };
const COHERE: Traits = Traits { style: RopeStyle::Norm, halves: Halves::Parallel, ..GATED };

/// Those of Command R7B: every fourth layer sees the whole context.
fn windows(keys: &Keys, n_layer: usize) -> Result<Windows> {
    keys.alternating_windows(n_layer, None, 4)
}

const TURNED: usize = 0;
const UNTURNED: usize = 1;

fn build(b: &mut Builder, t: &Traits) -> Result<Decoder> {
    let n_layer = b.config.n_layer;
    let alternate = b.config.arch == COHERE2.arch;
    let windows = if alternate { windows(b.keys, n_layer)? } else { no_windows(b.keys, n_layer)? };
    if !alternate {
        b.ignore_window()?;
    }
    let turned = if alternate { b.rope_with_factors(t.style)? } else { ContextRope::always(b.rope(t.style, None)) };
    let mut layers = Vec::with_capacity(n_layer);
    for (i, window) in windows.into_iter().enumerate() {
        // Where layers alternate, those that see everything have no positions.
        let rope = if alternate && window.is_none() { UNTURNED } else { TURNED };
        let attn = b.attention(i, AttentionShape { window, ..b.shape() }, rope, t.norm)?;
        let ffn = if t.gated { b.feed_forward(i, t.act)? } else { b.ungated_feed_forward(i, t.act)? };
        // Falcon's larger models call the norm of the feed-forward half what others call that of attention.
        let [first, second] = ["attn_norm", "attn_norm_2"].map(|name| format!("blk.{i}.{name}"));
        let own = format!("blk.{i}.ffn_norm");
        let has = |b: &Builder, name: &str| b.loader.has(&format!("{name}.weight"));
        let (of_attn, of_ffn) =
            if has(b, &second) { (second, Some(first)) } else { (first, has(b, &own).then_some(own)) };
        let parallel = match t.halves {
            Halves::InTurn => false,
            Halves::Parallel => true,
            Halves::AsNormed => of_ffn.is_none(),
        };
        if let (false, None) = (parallel, &of_ffn) {
            return Err(b.loader.error(format_args!("tensor blk.{i}.ffn_norm.weight is missing")));
        }
        let attn_norm = Some(b.norm(&of_attn)?);
        let ffn_norm = of_ffn.map(|name| b.norm(&name)).transpose()?;
        layers.push(Layer { attn_norm, ffn_norm, parallel, ..Layer::bare(attn, Some(ffn)) });
    }
    let mut decoder = b.decoder(layers, vec![turned, ContextRope::always(Rope::none())])?;
    if let Some(scale) = b.keys.float("logit_scale")?.filter(|&s| s != 0.0) {
        decoder.output_norm.scale(scale);
    }
    Ok(decoder)
}
