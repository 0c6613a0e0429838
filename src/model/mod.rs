//! Models: from a GGUF file to weights, and the forward pass over them.
//!
//! `general.architecture` selects a row of the registry below; the family's `build` describes its decoder, and
//! `forward` runs any of them. To add a family: a file with a `build`, a row in `FAMILIES`, and a row with golden logits in
//! `tests/families.rs`.

mod afmoe;
mod apertus;
mod arctic;
mod bailingmoe3;
mod bitnet;
mod buffers;
mod builder;
mod chameleon;
mod cohere2moe;
mod config;
mod dbrx;
mod deci;
mod decoder;
mod deepseek2;
mod describe;
mod exaone4;
mod falcon_h1;
mod file;
mod forward;
mod gemma;
mod gemma3;
mod gemma3n;
mod gemma4;
mod glm4;
mod gpt2;
mod gpt_oss;
mod granite;
mod grok;
mod grovemoe;
mod hunyuan;
mod hy_v3;
mod jamba;
mod kda;
mod kimi_linear;
mod laguna;
mod latent;
mod laurel;
mod layer_norm;
mod lfm2;
mod llama;
mod llama4;
mod mamba1;
mod mamba2;
mod maple;
mod mellum;
mod mimo2;
mod minicpm3;
mod minimax_01;
mod mixtures;
mod muse_glimmer;
mod nanbeige;
mod nemotron_h;
mod olmo;
mod olmo2;
mod olmoe;
mod openelm;
mod overrides;
mod phi3;
mod plamo;
mod plamo2;
mod plm;
mod qwen;
mod qwen35;
mod recommended;
mod rwkv6;
mod rwkv7;
mod seed_oss;
mod sharing;
mod smallthinker;
mod smollm3;
mod spark2_5;
mod step35;
mod streams;
mod talkie;
mod weights;

use std::path::Path;

use ggml_ext::GgmlType;
use ggml_ext::gguf::Gguf;
use ggml_ext::kernels::Kernels;

pub use buffers::pass_tokens;
pub use config::Config;
pub use decoder::Decoder;
pub use file::ModelFile;
pub use overrides::{Override, OverrideValue};
pub use recommended::RECOMMENDED_PREFIX;
pub use sharing::SharingSource;

pub(crate) use buffers::Buffers;
pub(crate) use decoder::{ExpertInput, Experts, FeedForward, Ffn, HeadNorm, QueryKey, Scores};
pub(crate) use forward::{Mode, Tokens, forward, head};

use builder::Builder;
use config::{Keys, gguf_error};
use describe::Description;
use weights::Loader;

#[cfg(doc)]
use crate::attention::AttentionShape;
use crate::attention::{self, SharePlan};
use crate::compute::{Hold, Matrix, Pool, default_threads};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// A model family: the architecture's name in the file and how its decoder is built.
pub struct Family {
    /// `general.architecture`.
    pub arch: &'static str,
    /// Builds the decoder from the file's keys and tensors.
    build: fn(&mut Builder) -> Result<Decoder>,
    /// How many positions each of so many layers attends to, see [`AttentionShape::window`].
    windows: fn(&Keys, usize) -> Result<Windows>,
    /// Floats that all of so many layers keep of a sequence as a whole.
    n_state: fn(&Keys, usize) -> Result<usize>,
    /// How often tokens pass through all layers.
    rounds: fn(&Keys) -> Result<usize>,
    /// Whether layers may have key/value heads and feed-forward networks of different sizes.
    varies: bool,
    /// Whether layers may have different numbers of query heads too.
    heads_vary: bool,
    /// Of what kind norms are.
    norms: Norms,
    /// Whether there is attention in it, and are feed-forward networks of a width that all files tell.
    attends: bool,
}

impl Family {
    /// The family of this architecture, if it is supported.
    fn of(arch: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|f| f.arch == arch)
    }

    /// A family whose layers are all alike and see the whole context.
    const fn new(arch: &'static str, build: fn(&mut Builder) -> Result<Decoder>) -> Self {
        Self {
            arch,
            build,
            windows: no_windows,
            n_state: |_, _| Ok(0),
            rounds: |_| Ok(1),
            varies: false,
            heads_vary: false,
            norms: Norms::Rms,
            attends: true,
        }
    }

    /// The same with sliding windows.
    const fn with_windows(self, windows: fn(&Keys, usize) -> Result<Windows>) -> Self {
        Self { windows, ..self }
    }

    /// The same with layers through which tokens pass more than once.
    const fn with_rounds(self, rounds: fn(&Keys) -> Result<usize>) -> Self {
        Self { rounds, ..self }
    }

    /// The same with states in the place of attention. What feed-forward networks there are is up to the family.
    const fn without_attention(self) -> Self {
        Self { attends: false, ..self }
    }

    /// The same with layers that keep a state in the place of positions.
    const fn with_states(self, n_state: fn(&Keys, usize) -> Result<usize>) -> Self {
        Self { n_state, ..self }
    }

    /// The same with LayerNorm in place of RMSNorm.
    const fn with_layer_norm(self) -> Self {
        Self { norms: Norms::Layer, ..self }
    }

    /// The same with LayerNorm in place of RMSNorm where the file gives no epsilon for the latter.
    const fn with_either_norm(self) -> Self {
        Self { norms: Norms::Either, ..self }
    }

    /// The same with layers of different sizes.
    const fn with_varying_layers(self) -> Self {
        Self { varies: true, ..self }
    }

    /// The same with query heads in different numbers besides.
    const fn with_varying_heads(self) -> Self {
        Self { varies: true, heads_vary: true, ..self }
    }
}

/// The kinds of norms.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Norms {
    /// RMSNorm.
    Rms,
    /// LayerNorm.
    Layer,
    /// RMSNorm where the file gives its epsilon, otherwise LayerNorm.
    Either,
}

/// One for each layer.
type Windows = Vec<Option<usize>>;

/// [`Family::windows`] where there are none.
fn no_windows(_: &Keys, n_layer: usize) -> Result<Windows> {
    Ok(vec![None; n_layer])
}

/// The same where files say how long windows are and which layers have them.
fn flagged_windows(keys: &Keys, n_layer: usize) -> Result<Windows> {
    keys.flagged_windows(n_layer)
}

/// How many positions each layer of a file attends to, see [`AttentionShape::window`]; those of unknown families, to all.
///
/// # Errors
/// Names `file` and the key that is missing or wrong.
pub fn windows(file: &str, gguf: &Gguf) -> Result<Vec<Option<usize>>> {
    let keys = Keys::new(gguf, file)?;
    let n_layer = keys.n_layer()?;
    Family::of(keys.arch()).map_or(no_windows as fn(&_, _) -> _, |f| f.windows)(&keys, n_layer)
}

/// Bytes that layers which know the sequence as a whole keep of it, in a session.
///
/// # Errors
/// As [`windows`].
pub fn state_bytes(file: &str, gguf: &Gguf) -> Result<usize> {
    let keys = Keys::new(gguf, file)?;
    Family::of(keys.arch()).map_or(Ok(0), |f| Ok(attention::state_bytes((f.n_state)(&keys, keys.n_layer()?)?)))
}

/// How often tokens pass through all layers of a file, each time with a cache of its own; once in unknown families.
///
/// # Errors
/// As [`windows`].
pub fn rounds(file: &str, gguf: &Gguf) -> Result<usize> {
    let keys = Keys::new(gguf, file)?;
    Family::of(keys.arch()).map_or(Ok(1), |f| (f.rounds)(&keys))
}

/// Every supported family.
pub const FAMILIES: &[Family] = &[
    llama::LLAMA,
    llama::INTERNLM2,
    llama::ERNIE4_5,
    llama::PADDLEOCR,
    llama::EXAONE,
    llama::MISTRAL3,
    llama::ARCEE,
    llama::XVERSE,
    deci::FAMILY,
    llama::BAICHUAN,
    llama::REFACT,
    llama4::FAMILY,
    llama::PANGU,
    exaone4::EXAONE4,
    exaone4::EXAONE_MOE,
    hunyuan::HUNYUAN,
    hunyuan::HUNYUAN_VL,
    hunyuan::MAINCODER,
    seed_oss::FAMILY,
    glm4::CHATGLM,
    glm4::GLM4,
    smollm3::FAMILY,
    spark2_5::FAMILY,
    nanbeige::FAMILY,
    olmo::FAMILY,
    olmo2::FAMILY,
    olmoe::FAMILY,
    chameleon::FAMILY,
    openelm::FAMILY,
    mixtures::DEEPSEEK,
    mixtures::BAILINGMOE,
    mixtures::BAILINGMOE2,
    mixtures::DOTS1,
    mixtures::GLM4MOE,
    mixtures::ERNIE4_5_MOE,
    mixtures::HUNYUAN_MOE,
    mixtures::MINIMAX_M2,
    mellum::FAMILY,
    afmoe::FAMILY,
    mimo2::FAMILY,
    step35::FAMILY,
    hy_v3::FAMILY,
    laguna::FAMILY,
    maple::FAMILY,
    deepseek2::FAMILY,
    deepseek2::MISTRAL4,
    minicpm3::FAMILY,
    plm::FAMILY,
    dbrx::FAMILY,
    arctic::FAMILY,
    grok::FAMILY,
    grovemoe::FAMILY,
    granite::GRANITE,
    granite::GRANITEMOE,
    granite::GRANITE_SWA,
    granite::MINICPM,
    qwen::QWEN,
    qwen::QWEN2,
    qwen::QWEN2MOE,
    qwen::QWEN3,
    qwen::QWEN3MOE,
    qwen::QWEN2VL,
    qwen::QWEN3VL,
    qwen::QWEN3VLMOE,
    kimi_linear::FAMILY,
    bailingmoe3::FAMILY,
    minimax_01::FAMILY,
    qwen35::QWEN3NEXT,
    qwen35::QWEN35,
    qwen35::QWEN35MOE,
    gemma::GEMMA,
    gemma::GEMMA2,
    gemma3::FAMILY,
    gemma3n::FAMILY,
    gemma4::FAMILY,
    muse_glimmer::FAMILY,
    plamo::PLAMO,
    plamo::PLAMO3,
    phi3::PHI3,
    phi3::PHIMOE,
    apertus::FAMILY,
    talkie::FAMILY,
    bitnet::FAMILY,
    smallthinker::FAMILY,
    gpt2::GPT2,
    gpt2::STARCODER,
    gpt2::BLOOM,
    gpt2::MPT,
    gpt2::JAIS,
    layer_norm::GPTNEOX,
    layer_norm::FALCON,
    layer_norm::PHI2,
    layer_norm::STARCODER2,
    layer_norm::CODESHELL,
    layer_norm::NEMOTRON,
    layer_norm::JAIS2,
    layer_norm::STABLELM,
    layer_norm::ORION,
    layer_norm::COMMAND_R,
    layer_norm::COHERE2,
    cohere2moe::FAMILY,
    gpt_oss::FAMILY,
    lfm2::LFM2,
    lfm2::LFM2MOE,
    granite::GRANITEHYBRID,
    falcon_h1::FAMILY,
    nemotron_h::NEMOTRON_H,
    nemotron_h::NEMOTRON_H_MOE,
    mamba1::MAMBA,
    jamba::FAMILY,
    plamo2::FAMILY,
    mamba2::MAMBA2,
    rwkv7::RWKV7,
    rwkv7::ARWKV7,
    rwkv6::RWKV6,
    rwkv6::RWKV6QWEN2,
];

/// How a model is loaded.
pub struct ModelParams<'p> {
    /// Read weights without a packed layout from the file's mapping (true) or from a copy (false).
    pub use_mmap: bool,
    /// Lock the weights in memory; a refusal by the system is a warning.
    pub mlock: bool,
    /// Threads that pack the weights.
    pub n_threads: usize,
    /// A sidecar with LISA modules for the model.
    pub lisa: Option<&'p ModelFile>,
    /// Layers that share attention without any modules.
    pub share: Option<&'p SharePlan>,
    /// Called with the fraction loaded, from 0 to 1.
    pub progress: Option<&'p mut dyn FnMut(f32)>,
}

impl Default for ModelParams<'_> {
    fn default() -> Self {
        Self { use_mmap: true, mlock: false, n_threads: default_threads(), lisa: None, share: None, progress: None }
    }
}

/// A model ready to run; sessions share it.
pub struct Model {
    config: Config,
    decoder: Decoder,
    plan: SharePlan,
    tokenizer: Tokenizer,
    chat_template: Option<String>,
    recommended: Vec<(String, String)>,
    name: Option<String>,
    n_file_bytes: usize,
    n_tensor_bytes: u64,
    n_params: u64,
    warnings: Vec<String>,
    kernels: &'static Kernels,
}

impl Model {
    /// Loads the GGUF file at `path`, with the other parts of a split.
    ///
    /// # Errors
    /// A file that cannot be read, is malformed, or describes a model this engine cannot run: names what is wrong.
    pub fn open(path: &Path, params: ModelParams) -> Result<Self> {
        Self::load(&ModelFile::open(path)?, params)
    }

    /// Loads the model embedded in the program.
    ///
    /// # Errors
    /// Only for an unusable environment, such as an unknown `LISA_CPU`.
    pub fn embedded(params: ModelParams) -> Result<Self> {
        Self::load(&ModelFile::embedded(), params)
    }

    /// Loads an opened file.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn load(file: &ModelFile, params: ModelParams) -> Result<Self> {
        let kernels = Kernels::from_env().map_err(Error::Impossible)?;
        let parts = file.parse()?;
        let gguf = &parts[0];
        let description = Description::read(&file.name, gguf)?;
        let pool = Pool::new(params.n_threads).map_err(thread_error)?;
        let sharing = SharingSource::read(file, &parts, params.lisa, params.share)?;
        let tensors = describe::tensors(file, &parts, &sharing);
        let n_params = parts.iter().flat_map(|g| g.tensors()).map(|t| t.row_len().saturating_mul(t.n_rows())).sum();
        let n_tensor_bytes = parts.iter().flat_map(|g| g.tensors()).map(|t| t.n_bytes).sum();
        let hold = if params.use_mmap { Hold::Packed } else { Hold::Copied };
        let loader = Loader::new(&file.name, tensors, hold, pool, params.progress)?;
        let (decoder, mut warnings) = description.decoder(&sharing, loader)?;
        let str = |key: &str| gguf.str(key).map_err(|e| gguf_error(&file.name, e));
        if params.mlock {
            warnings.extend(lock_memory());
        }
        Ok(Self {
            chat_template: str("tokenizer.chat_template")?.map(String::from),
            recommended: recommended::read(gguf),
            name: str("general.name")?.map(String::from),
            config: description.config,
            decoder,
            plan: sharing.plan,
            tokenizer: description.tokenizer,
            n_file_bytes: file.n_bytes(),
            n_tensor_bytes,
            n_params,
            warnings,
            kernels,
        })
    }

    /// Hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Layers, embedding and head.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Which layers share attention.
    pub fn plan(&self) -> &SharePlan {
        &self.plan
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The Jinja source of the model's chat template, where the file has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// How the file recommends to choose tokens: names and values, for
    /// [`SamplerParams::recommend`](crate::runtime::sampler::SamplerParams::recommend).
    pub fn recommended_sampling(&self) -> &[(String, String)] {
        &self.recommended
    }

    /// `general.name`.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Context the model was trained for.
    pub fn n_ctx_train(&self) -> usize {
        self.config.n_ctx_train
    }

    /// Bytes of the file or files.
    pub fn n_file_bytes(&self) -> usize {
        self.n_file_bytes
    }

    /// Bytes of the file's tensors.
    pub fn n_tensor_bytes(&self) -> u64 {
        self.n_tensor_bytes
    }

    /// Numbers in the file's tensors.
    pub fn n_params(&self) -> u64 {
        self.n_params
    }

    /// The element type that holds most of the layers' weights.
    pub fn main_type(&self) -> Option<GgmlType> {
        let mut sizes: Vec<(GgmlType, usize)> = Vec::new();
        for m in self.decoder.layer_weights() {
            match sizes.iter_mut().find(|(ty, _)| *ty == m.ty()) {
                Some((_, size)) => *size += m.rows() * m.cols(),
                None => sizes.push((m.ty(), m.rows() * m.cols())),
            }
        }
        sizes.into_iter().max_by_key(|&(_, size)| size).map(|(ty, _)| ty)
    }

    /// Bytes of the weight matrices in memory.
    pub fn n_weight_bytes(&self) -> usize {
        self.decoder.weights().map(Matrix::n_bytes).sum()
    }

    /// Things the user should know that did not stop the loading.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The kernels this process uses.
    pub fn kernels(&self) -> &'static Kernels {
        self.kernels
    }
}

pub(crate) fn thread_error(e: std::io::Error) -> Error {
    Error::Impossible(format!("cannot start the threads: {e}"))
}

/// Locks what is resident now; returns a warning when the system refuses.
fn lock_memory() -> Option<String> {
    #[cfg(unix)]
    {
        // SAFETY: a plain system call on this process.
        match unsafe { libc::mlockall(libc::MCL_CURRENT) } {
            0 => None,
            _ => Some(format!(
                "--mlock: the system refuses to lock the memory ({}); raise `ulimit -l`",
                std::io::Error::last_os_error()
            )),
        }
    }
    #[cfg(not(unix))]
    Some("--mlock is not supported on this system".into())
}
