//! From what a file says of a model to its decoder: with its weights, or without them to see whether it can be had.

use ggml_ext::gguf::Gguf;

use super::builder::{Builder, Sharing};
use super::config::{Keys, gguf_error, model_error};
use super::sharing::SharingSource;
use super::weights::{Loader, TensorFile};
use super::{Config, Decoder, FAMILIES, Family, ModelFile};
use crate::Result;
use crate::tokenizer::Tokenizer;

/// What of a model is known before its tensors.
pub struct Description<'g, 'a> {
    keys: Keys<'g, 'a>,
    family: &'static Family,
    /// Hyper-parameters.
    pub config: Config,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
}

impl<'g, 'a> Description<'g, 'a> {
    /// Reads the metadata `gguf` of a model that messages call `file`.
    ///
    /// # Errors
    /// Names the key that is missing or wrong; an architecture that is not supported.
    pub fn read(file: &'g str, gguf: &'g Gguf<'a>) -> Result<Self> {
        let kind = gguf.str("general.type").map_err(|e| gguf_error(file, e))?;
        if let Some(kind) = kind.filter(|&t| t != "model") {
            return Err(model_error(file, format!("general.type is '{kind}', expected a model")));
        }
        let keys = Keys::new(gguf, file)?;
        let family = Family::of(keys.arch()).ok_or_else(|| {
            let known: Vec<_> = FAMILIES.iter().map(|f| f.arch).collect();
            let what = format!("architecture '{}' is not supported, only {}", keys.arch(), known.join(", "));
            model_error(file, what)
        })?;
        let config = Config::read(&keys, family)?;
        let tokenizer = Tokenizer::from_gguf(gguf)?;
        Ok(Self { keys, family, config, tokenizer })
    }

    /// The decoder, of the tensors that `loader` has, under the plan `sharing`; and what the user should know of it.
    ///
    /// # Errors
    /// Names the tensor that is missing, wrong or left over, or the layer that cannot follow the plan.
    pub fn decoder(&self, sharing: &SharingSource, mut loader: Loader) -> Result<(Decoder, Vec<String>)> {
        let mut builder = Builder {
            keys: &self.keys,
            config: &self.config,
            n_vocab: self.tokenizer.n_vocab(),
            sharing: Sharing { plan: &sharing.plan, meta: sharing.meta.as_ref() },
            loader: &mut loader,
            warnings: Vec::new(),
            layer_norm: self.config.layer_norm,
            rms_biases: false,
            keys_make_values: false,
            queries_have_gates: false,
        };
        let decoder = (self.family.build)(&mut builder)?;
        let warnings = builder.warnings;
        loader.skip_layers_from(self.config.n_layer);
        loader.finish()?;
        Ok((decoder, warnings))
    }
}

/// The files with the tensors of the model `file`, parsed as `parts`: its sidecar, if there is one, and its own.
pub fn tensors(file: &ModelFile, parts: &[Gguf], sharing: &SharingSource) -> Vec<TensorFile> {
    let own = file.parts.iter().zip(parts).map(|(bytes, g)| TensorFile::new(&file.name, bytes, g));
    sharing.tensors.iter().cloned().chain(own).collect()
}
