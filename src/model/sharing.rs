//! Where a model's sharing plan comes from: the model file itself (a merged model), a sidecar beside it, or the command line.

use ggml_ext::gguf::Gguf;
use ggml_ext::lisa::{
    Geometry, LisaError, LisaMeta, MakeError, VERSION_KEY, check_base, check_container, check_plan, check_sidecar,
    check_tensors,
};

use super::config::{gguf_error, model_error};
use super::describe::{Description, tensors};
use super::weights::{Loader, TensorFile};
use super::{Family, ModelFile, thread_error};
use crate::attention::SharePlan;
use crate::compute::{Hold, Pool};
use crate::{Error, Result};

/// The plan, and what belongs to it.
pub struct SharingSource {
    /// Which layers share.
    pub plan: SharePlan,
    /// The metadata the plan comes from, unless from the command line.
    pub meta: Option<LisaMeta>,
    /// The sidecar's tensors.
    pub(super) tensors: Vec<TensorFile>,
}

impl SharingSource {
    /// Finds the plan of the model `file`, parsed as `parts`: its own, that of the sidecar `lisa`, or `share`. Checks that it and its
    /// tensors fit the model.
    ///
    /// # Errors
    /// Names the file, and the key, layer or tensor, that does not fit.
    pub fn read(file: &ModelFile, parts: &[Gguf], lisa: Option<&ModelFile>, share: Option<&SharePlan>) -> Result<Self> {
        let is_merged = parts[0].get(VERSION_KEY).is_some();
        match (is_merged, lisa, share) {
            (true, None, None) => merged(file, parts),
            (true, ..) => {
                let what = "the model has a sharing plan of its own: it takes no --lisa and no --share";
                Err(model_error(&file.name, what))
            }
            (false, Some(_), Some(_)) => {
                Err(Error::Params("--lisa and --share are two plans for one model: give one of them".into()))
            }
            (false, Some(sidecar), None) => with_sidecar(file, parts, sidecar),
            (false, None, None) => Ok(Self { plan: SharePlan::default(), meta: None, tensors: Vec::new() }),
            (false, None, Some(plan)) => {
                let geometry = Geometry::read(&parts[0]).map_err(|e| model_error(&file.name, e))?;
                plan.check_layers(geometry.layers.len()).map_err(|e| Error::Impossible(format!("--share: {e}")))?;
                Ok(Self { plan: plan.clone(), meta: None, tensors: Vec::new() })
            }
        }
    }

    /// Whether the model `file`, parsed as `parts`, can be loaded with the plan: builds its layers as loading does, but reads no weights.
    /// Where this engine cannot run the model, whether its layers have the heads for it.
    ///
    /// # Errors
    /// As loading the model.
    pub fn check(&self, file: &ModelFile, parts: &[Gguf]) -> Result<()> {
        let head = &parts[0];
        let arch = head.str("general.architecture").map_err(|e| gguf_error(&file.name, e))?.unwrap_or_default();
        if Family::of(arch).is_some() {
            let pool = Pool::new(1).map_err(thread_error)?;
            let loader = Loader::new(&file.name, tensors(file, parts, self), Hold::Unread, pool, None)?;
            return Description::read(&file.name, head)?.decoder(self, loader).map(drop);
        }
        // A plan that comes with metadata was compared with the model's heads when it was read.
        if self.meta.is_none() && !self.plan.is_empty() {
            let geometry = Geometry::read(head).map_err(|e| model_error(&file.name, e))?;
            let meta = self.plan.to_meta(geometry.layers.len(), String::new());
            check_plan(&meta, &geometry).map_err(|e| model_error(&file.name, e))?;
        }
        Ok(())
    }

    fn new(meta: LisaMeta, tensors: Vec<TensorFile>) -> Self {
        Self { plan: SharePlan::from_meta(&meta), meta: Some(meta), tensors }
    }
}

fn merged(file: &ModelFile, parts: &[Gguf]) -> Result<SharingSource> {
    let meta = read_meta(&file.name, &parts[0])?;
    let geometry = check_base(&meta, parts).map_err(|e| model_error(&file.name, e))?;
    let tensors = parts.iter().flat_map(|g| g.tensors().iter().map(move |t| (t, g.tensor_data(t))));
    check_tensors(&meta, &geometry, tensors).map_err(|e| model_error(&file.name, e))?;
    Ok(SharingSource::new(meta, Vec::new()))
}

fn with_sidecar(file: &ModelFile, base: &[Gguf], sidecar: &ModelFile) -> Result<SharingSource> {
    let parts = sidecar.parse()?;
    let [gguf] = parts.as_slice() else {
        return Err(model_error(&sidecar.name, "a sidecar is one file, not a split one"));
    };
    let arch = base[0].str("general.architecture").map_err(|e| gguf_error(&file.name, e))?.unwrap_or_default();
    check_container(gguf, arch).map_err(|e| model_error(&sidecar.name, e))?;
    let meta = read_meta(&sidecar.name, gguf)?;
    let geometry = check_base(&meta, base).map_err(|e| match e {
        MakeError::Sidecar(e) => model_error(&sidecar.name, e),
        e => model_error(&file.name, e),
    })?;
    check_sidecar(&meta, &geometry, arch, gguf).map_err(|e| model_error(&sidecar.name, e))?;
    Ok(SharingSource::new(meta, vec![TensorFile::new(&sidecar.name, &sidecar.parts[0], gguf)]))
}

fn read_meta(file: &str, gguf: &Gguf) -> Result<LisaMeta> {
    let meta = LisaMeta::read(gguf).map_err(|e| model_error(file, e))?;
    meta.ok_or_else(|| model_error(file, LisaError::MissingKey { key: VERSION_KEY }))
}
