//! `lisa-cpp synth`: models of random weights in the shape of real ones, to measure speed where no weights can be had.

mod fill;
mod shape;

use super::error::CliError;
use super::memory::human;
use super::output::{Inputs, Output};
use super::progress::Log;
use clap::{Args, ValueEnum};
use fill::{Data, Pools};
use ggml_ext::GgmlType;
use ggml_ext::gguf::{GgufWriter, WriteError};
use ggml_ext::lisa::{Kind, fingerprint};
use shape::{Preset, Shape, Substitution, Tensor};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::PathBuf;

/// Flags of `synth`.
#[derive(Args, Debug)]
pub struct SynthArgs {
    /// Model whose shape, vocabulary size and mix of types to take
    #[arg(long, value_name = "MODEL")]
    like: Preset,
    /// File to write
    #[arg(short, long, value_name = "FILE", required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// Type of the matrices; the output head has at least six bits
    #[arg(long = "type", value_name = "TYPE", default_value = "Q4_0", value_parser = weight_type)]
    ty: GgmlType,
    /// Layers
    #[arg(long, value_name = "N", value_parser = 1..=4096)]
    layers: Option<i64>,
    /// Width of the residual stream
    #[arg(long, value_name = "N", value_parser = 2..=(1 << 17))]
    n_embd: Option<i64>,
    /// Query heads
    #[arg(long, value_name = "N", value_parser = 1..=4096)]
    n_head: Option<i64>,
    /// Key/value heads
    #[arg(long, value_name = "N", value_parser = 1..=4096)]
    n_head_kv: Option<i64>,
    /// Width of the feed-forward network
    #[arg(long, value_name = "N", value_parser = 1..=(1 << 20))]
    n_ff: Option<i64>,
    /// Tokens in the vocabulary
    #[arg(long, value_name = "N", value_parser = 1..=(1 << 22))]
    n_vocab: Option<i64>,
    /// Context of the metadata
    #[arg(long, value_name = "N", value_parser = 1..=(1 << 30))]
    ctx: Option<i64>,
    /// Seed of all values
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Layers that take their attention from the layer before: spread evenly over those from the fifth on, or from an
    /// earlier one where there are not enough
    #[arg(long, value_name = "N")]
    layers_substituted: Option<usize>,
    /// How they take it
    #[arg(long, value_name = "KIND", default_value = "lisa", requires = "layers_substituted")]
    kind: KindArg,
    /// Values per low-rank head, an even number [default: a sixth of the head, at least 2]
    #[arg(long, value_name = "N", requires = "layers_substituted")]
    rank: Option<usize>,
    /// Hidden units of the alignment; 0: linear
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = 0..=(1 << 16), requires = "layers_substituted")]
    hidden: i64,
    /// Type of the low-rank projections [default: F16]
    #[arg(long, value_name = "TYPE", value_parser = weight_type, requires = "layers_substituted")]
    lisa_type: Option<GgmlType>,
    /// Print the tensors and their bytes instead of writing
    #[arg(long)]
    dry_run: bool,
    /// Nothing on standard error but errors
    #[arg(long)]
    log_disable: bool,
}

/// Kinds of substitution that need no other tensors than those made here.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum KindArg {
    /// Aligned weights and low-rank scores
    Lisa,
    /// The weights as they are
    Shared,
}

fn weight_type(name: &str) -> Result<GgmlType, String> {
    // Q8_K is what activations are quantised to, not a type of weights.
    let all = || GgmlType::ALL.iter().filter(|&&ty| ty != GgmlType::Q8_K);
    all().find(|ty| ty.name().eq_ignore_ascii_case(name)).copied().ok_or_else(|| {
        let names: Vec<_> = all().map(|ty| ty.name()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// Runs the command.
pub fn run(args: &SynthArgs) -> Result<(), CliError> {
    let shape = args.shape()?;
    let substitution = args.substitution(&shape)?;
    let tensors = shape::tensors(&shape, args.ty, substitution.as_ref());
    if args.dry_run {
        let mut out = std::io::stdout().lock();
        out.write_all(listing(&tensors).as_bytes())?;
        return Ok(out.flush()?);
    }
    let Some(path) = &args.output else { return Err(CliError::usage("--output is missing")) };
    let n_bytes = tensors.iter().filter_map(Tensor::n_bytes).sum();
    let log = Log::new(!args.log_disable);
    Output::create(path, &Inputs::default())?.fill(log, n_bytes, |out| {
        write(args, &shape, substitution.as_ref(), &tensors, out)
            .map_err(|e| CliError::run(format!("{}: {e}", path.display())))
    })?;
    log.line(format_args!("{}: {} tensors ({})", path.display(), tensors.len(), human(n_bytes)));
    Ok(())
}

impl SynthArgs {
    fn shape(&self) -> Result<Shape, CliError> {
        let mut s = self.like.shape();
        for (given, value) in [
            (self.layers, &mut s.n_layer),
            (self.n_embd, &mut s.n_embd),
            (self.n_head, &mut s.n_head),
            (self.n_head_kv, &mut s.n_head_kv),
            (self.n_ff, &mut s.n_ff),
            (self.n_vocab, &mut s.n_vocab),
            (self.ctx, &mut s.n_ctx),
        ] {
            if let Some(n) = given {
                *value = n as usize;
            }
        }
        s.check().map_err(CliError::Usage)?;
        Ok(s)
    }

    fn substitution(&self, shape: &Shape) -> Result<Option<Substitution>, CliError> {
        let Some(n_layer) = self.layers_substituted.filter(|&n| n > 0) else { return Ok(None) };
        if shape.gpt_oss {
            return Err(CliError::usage("--layers-substituted: heads with sinks cannot take another layer's weights"));
        }
        if n_layer >= shape.n_layer {
            let most = shape.n_layer - 1;
            return Err(CliError::usage(format!(
                "--layers-substituted {n_layer}: expected at most {most}, for the first layer has none before it"
            )));
        }
        let rank = self.rank.unwrap_or((shape.head_dim() / 12 * 2).max(2));
        if !rank.is_multiple_of(2) || rank > shape.head_dim() {
            let most = shape.head_dim();
            return Err(CliError::usage(format!(
                "--rank {rank}: expected an even number of at most the head's {most}"
            )));
        }
        let kind = match self.kind {
            KindArg::Lisa => Kind::Lisa,
            KindArg::Shared if self.rank.is_some() || self.hidden > 0 || self.lisa_type.is_some() => {
                return Err(CliError::usage("--rank, --hidden and --lisa-type belong to --kind lisa"));
            }
            KindArg::Shared => Kind::Shared,
        };
        let ty = self.lisa_type.unwrap_or(GgmlType::F16);
        Ok(Some(Substitution { n_layer, kind, rank, hidden: self.hidden as usize, ty }))
    }

    fn name(&self) -> String {
        let preset = self.like.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
        format!("random weights like {preset}")
    }
}

/// Writes the model.
fn write(
    args: &SynthArgs,
    shape: &Shape,
    substitution: Option<&Substitution>,
    tensors: &[Tensor],
    out: &mut dyn Write,
) -> Result<(), WriteError> {
    let mut pools = Pools::default();
    let mut w = GgufWriter::new(out);
    shape::write_keys(&mut w, &args.name(), shape)?;
    if let Some(sub) = substitution {
        sub.meta(shape, fingerprint_of(&mut pools, tensors, shape, args.seed)).write(&mut w)?;
    }
    for t in tensors {
        w.tensor(&t.name, &t.shape, t.ty)?;
    }
    for t in tensors {
        pools.data(t, args.seed).pieces(|piece| w.part(&t.name, piece))?;
    }
    w.finish()?;
    Ok(())
}

/// The model's fingerprint, which its norms tell.
fn fingerprint_of(pools: &mut Pools, tensors: &[Tensor], shape: &Shape, seed: u64) -> String {
    let norms: HashMap<&str, Vec<u8>> = tensors
        .iter()
        .filter(|t| t.name.ends_with("_norm.weight"))
        .filter_map(|t| match pools.data(t, seed) {
            Data::Whole(bytes) => Some((t.name.as_str(), bytes)),
            Data::Drawn { .. } => None,
        })
        .collect();
    let norm = |name: &str| norms.get(name).map(|bytes| (GgmlType::F32, bytes.as_slice()));
    fingerprint(shape.n_layer, norm).expect("every layer has its norm, in F32")
}

/// What `--dry-run` prints.
fn listing(tensors: &[Tensor]) -> String {
    let width = tensors.iter().map(|t| t.name.len()).max().unwrap_or(0);
    let mut by_type = BTreeMap::<GgmlType, (usize, u64)>::new();
    let mut text = String::new();
    for t in tensors {
        let (shape, bytes) = (t.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" x "), t.n_bytes());
        let bytes = bytes.unwrap_or_default();
        text += &format!("{:<width$}  {shape:<16}  {:<7}  {bytes:>12}\n", t.name, t.ty.name());
        let sum = by_type.entry(t.ty).or_default();
        *sum = (sum.0 + 1, sum.1 + bytes);
    }
    for (ty, (n, bytes)) in &by_type {
        text += &format!("{:<7}  {n:>5} tensors  {bytes:>13} bytes\n", ty.name());
    }
    let total: u64 = by_type.values().map(|(_, bytes)| bytes).sum();
    text + &format!("total    {:>5} tensors  {total:>13} bytes ({})\n", tensors.len(), human(total))
}
