//! `lisa-cpp inspect`: what a GGUF file holds and the memory it needs. Works for any architecture.

mod sharing;

use super::args::CacheTypeArg;
use super::error::CliError;
use super::load;
use super::memory::human;
use clap::{Args, ValueEnum};
use ggml_ext::GgmlType;
use ggml_ext::gguf::{Gguf, TensorInfo, Value};
use ggml_ext::kernels::Kernels;
use ggml_ext::lisa::{Geometry, Heads};
use ggml_ext::pack;
use lisa_cpp::attention::{CacheParams, CacheType};
use lisa_cpp::compute::default_threads;
use lisa_cpp::model::{ModelFile, pass_tokens, rounds, state_bytes, windows};
use lisa_cpp::runtime::SessionParams;
use serde_json::{Map, json};
use sharing::Sharing;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

/// Flags of `inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// GGUF file (of a split model: its first part). Default: the embedded story model
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The same, as other commands take it
    #[arg(short, long, value_name = "FILE", conflicts_with = "file")]
    model: Option<PathBuf>,
    /// Context for which memory is computed [default: the one the model was trained for]
    #[arg(short, long, value_name = "N")]
    ctx_size: Option<u64>,
    /// Most tokens that go through the layers together, for the memory of a pass [-ub]
    #[arg(long, value_name = "N", default_value_t = 512)]
    ubatch_size: u64,
    /// Sidecar with LISA modules for the model
    #[arg(long, value_name = "FILE", conflicts_with = "share")]
    lisa: Option<PathBuf>,
    /// Layers that share attention, as for generation
    #[arg(long, value_name = "LAYERS")]
    share: Option<String>,
    /// Print long arrays and strings in full
    #[arg(long)]
    all: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// Nothing on standard error but errors (there is nothing to disable)
    #[arg(long, hide = true)]
    log_disable: bool,
}

/// Runs the command.
pub fn run(args: &InspectArgs) -> Result<(), CliError> {
    let file = load::file(args.file.as_deref().or(args.model.as_deref()))?;
    let parts = file.parse()?;
    let sharing = Sharing::of(&file, &parts, args.lisa.as_deref(), args.share.as_deref())?;
    let report = Report::new(&file, &parts, sharing, args)?;
    let text = if args.json { format!("{:#}\n", report.json(args.all)) } else { report.text(args.all) };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Tensors of one type, summed.
#[derive(Clone, Copy, Default)]
struct Sum {
    n_tensors: usize,
    n_elements: u64,
    n_bytes: u64,
    /// Bytes in memory, where matrices are packed.
    n_resident: u64,
}

impl Sum {
    fn add(&mut self, t: &TensorInfo) {
        self.n_tensors += 1;
        self.n_elements += t.n_elements();
        self.n_bytes += t.n_bytes;
        let packed = match t.shape.len() {
            0 | 1 => None,
            _ => pack::packed_bytes(t.ty, t.n_rows() as usize, t.row_len() as usize),
        };
        self.n_resident = self.n_resident.saturating_add(packed.map_or(t.n_bytes, |n| n as u64));
    }
}

struct Report<'f, 'g> {
    file: &'f ModelFile,
    parts: &'g [Gguf<'f>],
    total: Sum,
    by_type: BTreeMap<GgmlType, Sum>,
    memory: Option<Memory>,
    sharing: Option<Sharing>,
}

/// Bytes of memory a session takes.
struct Memory {
    n_ctx: u64,
    n_ubatch: u64,
    /// Tokens of one forward pass on this machine.
    n_pass: u64,
    /// By element type of keys and values, as far as the size of the heads allows them.
    cache: Vec<(CacheTypeArg, u64)>,
    /// Work space of a forward pass.
    compute: u64,
}

impl<'f, 'g> Report<'f, 'g> {
    fn new(
        file: &'f ModelFile,
        parts: &'g [Gguf<'f>],
        sharing: Option<Sharing>,
        args: &InspectArgs,
    ) -> Result<Self, CliError> {
        let mut total = Sum::default();
        let mut by_type = BTreeMap::<GgmlType, Sum>::new();
        for t in parts.iter().flat_map(Gguf::tensors) {
            total.add(t);
            by_type.entry(t.ty).or_default().add(t);
        }
        let memory = Memory::of(&parts[0], sharing.as_ref(), args);
        if memory.is_none() && args.ctx_size.is_some() {
            return Err(CliError::run(
                "--ctx-size: the file does not describe a decoder whose memory could be computed",
            ));
        }
        Ok(Report { file, parts, total, by_type, memory, sharing })
    }

    fn tensors(&self) -> impl Iterator<Item = (usize, &TensorInfo)> {
        self.parts.iter().enumerate().flat_map(|(part, g)| g.tensors().iter().map(move |t| (part, t)))
    }

    fn json(&self, all: bool) -> serde_json::Value {
        let gguf = &self.parts[0];
        let metadata: Map<_, _> = gguf.metadata().map(|(k, v)| (k.to_owned(), value_json(v, all))).collect();
        let tensor = |(part, t): (usize, &TensorInfo)| {
            json!({
                "name": t.name, "shape": t.shape, "type": t.ty.name(), "bytes": t.n_bytes, "part": part, "offset": t.offset,
            })
        };
        let kind = |(ty, s): (&GgmlType, &Sum)| json!({"type": ty.name(), "tensors": s.n_tensors, "parameters": s.n_elements, "bytes": s.n_bytes});
        json!({
            "file": self.file.name,
            "bytes": self.file.n_bytes(),
            "parts": self.parts.len(),
            "version": gguf.version(),
            "alignment": gguf.alignment(),
            "parameters": self.total.n_elements,
            "metadata": metadata,
            "tensors": self.tensors().map(tensor).collect::<Vec<_>>(),
            "types": self.by_type.iter().map(kind).collect::<Vec<_>>(),
            "memory": self.memory.as_ref().map(|m| m.json(self.weight_bytes())),
            "sharing": self.sharing.as_ref().map(Sharing::json),
        })
    }

    /// Bytes of weights that a run holds in memory.
    fn weight_bytes(&self) -> u64 {
        let saved = self.sharing.as_ref().map_or(0, Sharing::saved_weight_bytes);
        self.total.n_resident.saturating_add_signed(-saved)
    }

    fn text(&self, all: bool) -> String {
        let mut out = String::new();
        self.write(&mut out, all).map_or_else(|_| String::new(), |()| out)
    }

    fn write(&self, out: &mut String, all: bool) -> std::fmt::Result {
        let gguf = &self.parts[0];
        writeln!(out, "file         {}", self.file.name)?;
        let parts = if self.parts.len() > 1 { format!(" in {} parts", self.parts.len()) } else { String::new() };
        writeln!(out, "size         {}{parts}", human(self.file.n_bytes() as u64))?;
        writeln!(out, "format       GGUF v{}, aligned to {} bytes", gguf.version(), gguf.alignment())?;
        writeln!(out, "parameters   {} ({:.2} bits each)", count(self.total.n_elements), self.total.bits())?;

        writeln!(out, "\nmetadata: {} keys", gguf.metadata().count())?;
        let width = gguf.metadata().map(|(k, _)| k.len()).max().unwrap_or(0);
        for (key, value) in gguf.metadata() {
            writeln!(out, "  {key:<width$}  {:<15}  {}", value.type_name(), value_text(value, all))?;
        }

        writeln!(out, "\ntensors: {}", self.total.n_tensors)?;
        let width = self.tensors().map(|(_, t)| t.name.len()).max().unwrap_or(0);
        for (_, t) in self.tensors() {
            let shape = t.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
            writeln!(out, "  {:<width$}  {shape:<16}  {:<7}  {:>12}", t.name, t.ty.name(), human(t.n_bytes))?;
        }

        writeln!(out, "\ntypes")?;
        for (ty, s) in &self.by_type {
            let (n, parameters) = (s.n_tensors, count(s.n_elements));
            writeln!(out, "  {:<7}  {n:>5} tensors  {parameters:>10} parameters  {:>12}", ty.name(), human(s.n_bytes))?;
        }

        if let Some(m) = &self.memory {
            writeln!(out, "\nmemory for a context of {} tokens", m.n_ctx)?;
            writeln!(out, "  weights           {:>12}", human(self.weight_bytes()))?;
            for (kind, bytes) in &m.cache {
                writeln!(out, "  cache in {:<5}    {:>12}", CacheType::from(*kind), human(*bytes))?;
            }
            writeln!(out, "  compute buffers   {:>12}  (about, for passes of {} tokens)", human(m.compute), m.n_pass)?;
            let total = self.weight_bytes().saturating_add(m.default_cache()).saturating_add(m.compute);
            writeln!(out, "  together          {:>12}  (cache in f16)", human(total))?;
        }
        if let Some(sharing) = &self.sharing {
            sharing.write(out)?;
        }
        Ok(())
    }
}

impl Sum {
    fn bits(&self) -> f64 {
        self.n_bytes as f64 * 8.0 / (self.n_elements.max(1)) as f64
    }
}

impl Memory {
    /// From the metadata; `None` where the file does not describe a transformer decoder. Sums saturate: a file can claim
    /// anything.
    fn of(gguf: &Gguf, sharing: Option<&Sharing>, args: &InspectArgs) -> Option<Self> {
        let arch = gguf.str("general.architecture").ok()??;
        let number = |key: &str| gguf.u64(&format!("{arch}.{key}")).ok().flatten();
        let geometry = Geometry::read(gguf).ok()?;
        let n_embd = geometry.n_embd as u64;
        // One number, or one per layer.
        let per_layer = |key: &str| -> Option<Vec<u64>> {
            match gguf.u32s(&format!("{arch}.{key}")) {
                Ok(Some(all)) => Some(all.into_iter().map(u64::from).collect()),
                _ => number(key).map(|n| vec![n]),
            }
        };
        // A model may have experts alone.
        let n_ff = per_layer("feed_forward_length").into_iter().flatten().max().unwrap_or(0);
        // Experts: hidden units of those that a token meets, and for each a row that it is given and one that it makes.
        let most_of = |key: &str| per_layer(key)?.into_iter().max();
        let n_used = most_of("expert_used_count").filter(|_| number("expert_count") > Some(0));
        let n_ff_expert = most_of("expert_feed_forward_length").filter(|&n| n > 0).unwrap_or(n_ff);
        let n_ff = n_used.map_or(n_ff, |n| n.saturating_mul(n_ff_expert));
        let of_experts = n_used.unwrap_or(0).saturating_mul(n_embd).saturating_mul(2);
        let n_ctx = args.ctx_size.filter(|&n| n > 0).or_else(|| number("context_length"))?;

        let states = state_bytes("", gguf).unwrap_or(0) as u64;
        // No decoder is without heads but where states are in their place.
        if states == 0 {
            geometry.layers.iter().find(|h| h.n_head > 0)?;
        }
        let head = |kind: CacheTypeArg, n: usize| CacheType::from(kind).ggml().row_bytes(n).map(|bytes| bytes as u64);
        let kernels = Kernels::from_env().unwrap_or_else(|_| Kernels::detect());
        let pass = pass_tokens(kernels, usize::try_from(n_ff).ok()?, default_threads()) as u64;
        let n_ubatch = args.ubatch_size.min(n_ctx);
        let n_pass = n_ubatch.min(pass);
        let windows = windows("", gguf).unwrap_or_default();
        let n_rounds = rounds("", gguf).unwrap_or(1) as u64;
        let cache = CacheTypeArg::value_variants().iter().filter_map(|&kind| {
            let (ty, n_ctx) = (CacheType::from(kind), usize::try_from(n_ctx).ok()?);
            let spare = SessionParams::default().window_spare.map(|n| n.max(n_pass as usize));
            let params = CacheParams { ty_k: ty, ty_v: ty, n_ctx, spare };
            let n_positions = |window| params.n_positions(window).min(n_ctx) as u64;
            if let Some(cost) = sharing.and_then(|s| s.cost(kind)) {
                return Some((kind, cost.cached(n_positions).after.saturating_add(states)));
            }
            let layer = |(l, heads): (usize, &Heads)| {
                let bytes = head(kind, heads.key_length)?.saturating_add(head(kind, heads.value_length)?);
                let window = windows.get(l).copied().flatten();
                Some(
                    bytes
                        .saturating_mul(heads.n_head_kv as u64)
                        .saturating_mul(n_positions(window))
                        .saturating_mul(n_rounds),
                )
            };
            let caching = geometry.layers.iter().take(geometry.n_caching).enumerate();
            let bytes = caching.map(layer).try_fold(states, |sum, bytes| Some(sum.saturating_add(bytes?)))?;
            Some((kind, bytes))
        });
        let cache = cache.collect();
        let most = |of: fn(&Heads) -> usize| geometry.layers.iter().map(of).max().unwrap_or(0) as u64;
        let q = most(|h| h.n_head.saturating_mul(h.key_length));
        let kv = most(|h| h.n_head_kv.saturating_mul(h.key_length.saturating_add(h.value_length)));
        // Multi-head latent attention: queries before they meet its matrices, what these meet, and what they make of its sums.
        let of_head = |key: &str| number(&format!("attention.{key}_length_mla")).unwrap_or(0);
        let latents = if of_head("key") > 0 { most(|h| h.n_head.saturating_mul(h.value_length)) } else { 0 };
        let of_heads =
            of_head("key").saturating_mul(2).saturating_add(of_head("value")).saturating_mul(most(|h| h.n_head));
        let of_latents = latents.saturating_add(of_heads);
        // States: what goes into convolutions and what comes out, gates, and what is read.
        let of_state = |key: &str| number(&format!("ssm.{key}")).filter(|_| states > 0).unwrap_or(0);
        let of_keys = of_state("group_count").saturating_mul(of_state("state_size")).saturating_mul(4);
        // What channels' steps are made of, where there are no groups of them.
        let of_steps = match of_state("group_count") {
            0 => {
                of_state("time_step_rank").saturating_add(of_state("state_size")).saturating_add(of_state("inner_size"))
            }
            _ => 0,
        };
        let of_states = of_state("inner_size").saturating_mul(4).saturating_add(of_keys);
        let of_states = of_states.saturating_add(of_steps.saturating_mul(2));
        // Time mixing: operands, what is made of them, and what is read.
        let of_time_mix = if number("wkv.head_size").is_some() { n_embd.saturating_mul(20) } else { 0 };
        // Residual, norm, attention's inputs and outputs, the feed-forward's three: floats for every token of a pass.
        let per_token = [
            n_embd.saturating_mul(3),
            q.saturating_mul(2),
            kv,
            n_ff.saturating_mul(3),
            of_experts,
            of_latents,
            of_states,
            of_time_mix,
        ];
        let per_token = per_token.into_iter().fold(0u64, u64::saturating_add).saturating_mul(4);
        let n_vocab = match gguf.get("tokenizer.ggml.tokens") {
            Some(Value::Array(tokens)) => tokens.len() as u64,
            _ => 0,
        };
        let compute = per_token.saturating_mul(n_pass).saturating_add(n_vocab.saturating_mul(4).max(16 << 20));
        Some(Memory { n_ctx, n_ubatch, n_pass, cache, compute })
    }

    fn default_cache(&self) -> u64 {
        self.cache.iter().find(|(kind, _)| matches!(kind, CacheTypeArg::F16)).map_or(0, |c| c.1)
    }

    fn json(&self, weights: u64) -> serde_json::Value {
        let cache: Map<_, _> =
            self.cache.iter().map(|(kind, bytes)| (CacheType::from(*kind).to_string(), json!(bytes))).collect();
        json!({
            "n_ctx": self.n_ctx,
            "n_ubatch": self.n_ubatch,
            "n_pass": self.n_pass,
            "weights_bytes": weights,
            "cache_bytes": cache,
            "compute_bytes": self.compute,
            "total_bytes": weights.saturating_add(self.default_cache()).saturating_add(self.compute),
        })
    }
}

/// Elements of an array that are shown without `--all`.
const FEW: usize = 6;
/// Characters of a string that are shown without `--all`.
const SHORT: usize = 64;

fn value_json(value: &Value, all: bool) -> serde_json::Value {
    match value {
        Value::Bool(v) => json!(v),
        Value::String(v) => json!(v),
        // JSON has no infinities and no NaN.
        Value::F32(v) if !v.is_finite() => json!(v.to_string()),
        Value::F64(v) if !v.is_finite() => json!(v.to_string()),
        // Through the shortest decimal form: 1e-5, not 9.999999747378752e-6.
        Value::F32(v) => v.to_string().parse::<f64>().map_or(json!(v), |v| json!(v)),
        Value::F64(v) => json!(v),
        Value::U64(v) => json!(v),
        Value::Array(a) if all || a.len() <= FEW => a.iter().map(|v| value_json(&v, all)).collect(),
        Value::Array(a) => json!({
            "type": value.type_name(),
            "length": a.len(),
            "first": a.iter().take(FEW).map(|v| value_json(&v, all)).collect::<Vec<_>>(),
        }),
        int => json!(int.as_int().and_then(|v| i64::try_from(v).ok())),
    }
}

fn value_text(value: &Value, all: bool) -> String {
    match value {
        Value::Bool(v) => v.to_string(),
        Value::F32(v) => v.to_string(),
        Value::F64(v) => v.to_string(),
        Value::String(s) => match s.char_indices().nth(SHORT) {
            Some((end, _)) if !all => format!("{:?}... ({} bytes)", &s[..end], s.len()),
            _ => format!("{s:?}"),
        },
        Value::Array(a) => {
            let n = if all { a.len() } else { FEW };
            let mut text = a.iter().take(n).map(|v| value_text(&v, all)).collect::<Vec<_>>().join(", ");
            if a.len() > n {
                let _ = write!(text, ", ... ({} elements)", a.len());
            }
            format!("[{text}]")
        }
        int => int.as_int().map(|v| v.to_string()).unwrap_or_default(),
    }
}

/// `134.52 M`.
fn count(n: u64) -> String {
    match n as f64 {
        x if x >= 1e9 => format!("{:.2} G", x / 1e9),
        x if x >= 1e6 => format!("{:.2} M", x / 1e6),
        x if x >= 1e3 => format!("{:.2} k", x / 1e3),
        _ => n.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_abbreviated_unless_all_is_wanted() {
        let long = "é".repeat(100);
        assert!(value_text(&Value::String(&long), false).ends_with("... (200 bytes)"));
        assert_eq!(value_text(&Value::String(&long), true), format!("{long:?}"));
        assert_eq!(value_text(&Value::String("a\nb"), false), r#""a\nb""#);
        assert_eq!(value_text(&Value::F32(1e-5), false), "0.00001");
    }

    #[test]
    fn json_values() {
        assert_eq!(value_json(&Value::F32(1e-5), false), json!(1e-5));
        assert_eq!(value_json(&Value::F32(f32::NEG_INFINITY), false), json!("-inf"));
        assert_eq!(value_json(&Value::U64(u64::MAX), false), json!(u64::MAX));
        assert_eq!(value_json(&Value::I8(-3), false), json!(-3));
    }

    #[test]
    fn counts() {
        assert_eq!(count(999), "999");
        assert_eq!(count(134_515_008), "134.52 M");
    }
}
