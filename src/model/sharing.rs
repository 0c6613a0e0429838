//! Where a model's sharing plan comes from: the model file itself (a merged model), a sidecar beside it, or the command line.

use ggml_ext::gguf::Gguf;
use ggml_ext::gguf::split::SplitTensors;
use ggml_ext::lisa::{self, LisaError, LisaMeta};

use super::config::{gguf_error, model_error};
use super::weights::Part;
use super::{Config, ModelFile, ModelParams};
use crate::attention::SharePlan;
use crate::{Error, Result};

/// The plan, and what belongs to it.
pub struct SharingSource {
    /// Which layers share.
    pub plan: SharePlan,
    /// The metadata the plan comes from, unless from the command line.
    pub meta: Option<LisaMeta>,
    /// The sidecar's tensors.
    pub tensors: Vec<Part>,
}

impl SharingSource {
    /// Finds the plan of the model `file`, parsed as `parts`, and checks that it fits the model.
    ///
    /// # Errors
    /// Names the file, and the key, layer or tensor, that does not fit.
    pub fn read(file: &ModelFile, parts: &[Gguf], params: &ModelParams, config: &Config) -> Result<Self> {
        let merged = LisaMeta::read(&parts[0]).map_err(|e| lisa_error(&file.name, e))?;
        if merged.is_some() && (params.lisa.is_some() || params.share.is_some()) {
            let what = "the model has a sharing plan already: it takes no --lisa and no --share";
            return Err(model_error(&file.name, what));
        }
        if params.lisa.is_some() && params.share.is_some() {
            return Err(Error::Params("--lisa and --share are two plans for one model: give one of them".into()));
        }
        let (name, meta, tensors) = match (merged, params.lisa) {
            (Some(meta), _) => (&file.name, Some(meta), Vec::new()),
            (None, Some(sidecar)) => {
                let (meta, tensors) = read_sidecar(sidecar, config)?;
                (&sidecar.name, Some(meta), tensors)
            }
            (None, None) => (&file.name, None, Vec::new()),
        };
        let Some(meta) = meta else {
            let plan = params.share.cloned().unwrap_or_default();
            plan.check_layers(config.n_layer).map_err(|e| Error::Params(format!("--share: {e}")))?;
            return Ok(Self { plan, meta: None, tensors });
        };
        if meta.layers.len() != config.n_layer {
            let (found, expected) = (meta.layers.len(), config.n_layer);
            let what = format!("key lisa.layer.kind: {found} values, the model has {expected} layers");
            return Err(model_error(name, what));
        }
        check_fingerprint(file, parts, name, &meta)?;
        Ok(Self { plan: SharePlan::from_meta(&meta), meta: Some(meta), tensors })
    }
}

/// A sidecar's metadata and tensors.
fn read_sidecar(file: &ModelFile, config: &Config) -> Result<(LisaMeta, Vec<Part>)> {
    let parts = file.parse()?;
    let gguf = &parts[0];
    if !lisa::is_sidecar(gguf) {
        let what = "is not a LISA sidecar: expected general.type 'adapter' and adapter.type 'lisa'";
        return Err(model_error(&file.name, what));
    }
    let meta = LisaMeta::read(gguf).map_err(|e| lisa_error(&file.name, e))?;
    let meta = meta.ok_or_else(|| model_error(&file.name, "key lisa.version is missing"))?;
    let arch = gguf.str("general.architecture").map_err(|e| gguf_error(&file.name, e))?;
    if let Some(arch) = arch.filter(|&a| a != config.arch) {
        let what = format!("the sidecar is for architecture '{arch}', the model's is '{}'", config.arch);
        return Err(model_error(&file.name, what));
    }
    let tensors = file.parts.iter().zip(&parts).map(|(bytes, g)| Part::new(&file.name, bytes, g)).collect();
    Ok((meta, tensors))
}

/// The plan must have been made for this very model.
fn check_fingerprint(file: &ModelFile, parts: &[Gguf], name: &str, meta: &LisaMeta) -> Result<()> {
    let tensors = SplitTensors::new(parts).map_err(|e| model_error(&file.name, e))?;
    let lookup = |name: &str| tensors.get(name).map(|(part, t)| (t.ty, parts[part].tensor_data(t)));
    let found = lisa::fingerprint(meta.layers.len(), lookup).map_err(|e| lisa_error(&file.name, e))?;
    if found != meta.fingerprint {
        return Err(model_error(
            name,
            format!(
                "key lisa.base.fingerprint: the modules were made for a model with fingerprint {}..., that of {} is {}...",
                &meta.fingerprint[..12],
                file.name,
                &found[..12]
            ),
        ));
    }
    Ok(())
}

fn lisa_error(file: &str, e: LisaError) -> Error {
    model_error(file, e)
}
