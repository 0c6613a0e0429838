//! What becomes of every tensor of a model, decided before anything is written.

use std::collections::HashMap;

use fancy_regex::Regex;
use ggml_ext::GgmlType;
use ggml_ext::gguf::{Gguf, TensorInfo};
use ggml_ext::lisa::{self, Part, is_lisa_name};

use super::Recipe;
use super::mix::{self, Facts, Role};
use crate::imatrix::Importance;
use crate::{Error, Result};

/// What to quantise to.
#[derive(Debug, Clone)]
pub struct Options {
    /// The mix; `None` copies all tensors as they are.
    pub recipe: Option<Recipe>,
    /// The recipe's base type for all matrices.
    pub pure: bool,
    /// Leave `output.weight` as it is.
    pub keep_output: bool,
    /// Type of `output.weight`, and of embeddings that serve as the output head.
    pub output_type: Option<GgmlType>,
    /// Type of the token embeddings.
    pub embedding_type: Option<GgmlType>,
    /// Types of the tensors whose name a pattern is found in; of several the first counts.
    pub tensor_types: Vec<(Regex, GgmlType)>,
    /// Quantise what is quantised already.
    pub allow_requantize: bool,
}

impl Options {
    /// The recipe and nothing else.
    pub fn new(recipe: Recipe) -> Self {
        Self {
            recipe: Some(recipe),
            pure: false,
            keep_output: false,
            output_type: None,
            embedding_type: None,
            tensor_types: Vec::new(),
            allow_requantize: false,
        }
    }
}

/// A tensor's part in a [`Plan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The file of a split model that holds it.
    pub part: usize,
    /// The tensor as it is.
    pub tensor: TensorInfo,
    /// Its type to be.
    pub ty: GgmlType,
    /// The type it would have if its rows divided into blocks of it.
    pub wished: Option<GgmlType>,
}

impl Step {
    /// Bytes of the tensor to be.
    pub fn n_bytes(&self) -> u64 {
        let row = self.ty.row_bytes(self.tensor.row_len() as usize).expect("the plan chooses types that fit");
        row as u64 * self.tensor.n_rows()
    }

    /// True for a tensor that stays as it is.
    pub fn is_copy(&self) -> bool {
        self.ty == self.tensor.ty
    }
}

/// What becomes of every tensor.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The recipe, unless tensors are only copied.
    pub recipe: Option<Recipe>,
    /// The tensors, in the order of the file.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Plans for the model of the files `parts`.
    ///
    /// # Errors
    /// A message that names the tensor: one that a recipe needs an importance matrix for; one that is quantised already (unless
    /// `allow_requantize`, or `dry_run`).
    pub fn new(parts: &[Gguf], o: &Options, importance: Option<&Importance>, dry_run: bool) -> Result<Self> {
        let tensors: Vec<(usize, &TensorInfo)> =
            parts.iter().enumerate().flat_map(|(i, g)| g.tensors().iter().map(move |t| (i, t))).collect();
        let head = parts.first().ok_or_else(|| Error::Impossible("a model has at least one file".into()))?;
        let chooser = Chooser::new(head, &tensors, o, importance.is_some());
        let mut steps = Vec::with_capacity(tensors.len());
        for (part, t) in tensors {
            let wished = chooser.choose(t).unwrap_or(t.ty);
            let ty = mix::fallback(wished, t.row_len());
            let step = Step { part, tensor: t.clone(), ty, wished: (ty != wished).then_some(wished) };
            if !dry_run {
                check(&step, o, importance)?;
            }
            steps.push(step);
        }
        Ok(Self { recipe: o.recipe, steps })
    }

    /// Bytes of all tensors as they are and as they will be.
    pub fn n_bytes(&self) -> (u64, u64) {
        (self.steps.iter().map(|s| s.tensor.n_bytes).sum(), self.steps.iter().map(Step::n_bytes).sum())
    }

    /// Elements of all tensors.
    pub fn n_elements(&self) -> u64 {
        self.steps.iter().map(|s| s.tensor.n_elements()).sum()
    }
}

/// Refuses what would give a bad model.
fn check(step: &Step, o: &Options, importance: Option<&Importance>) -> Result<()> {
    let t = &step.tensor;
    let fault = |what: String| Err(Error::Impossible(format!("tensor {} {what}", t.name)));
    if !step.is_copy() && !t.ty.is_float() && !o.allow_requantize {
        return fault(format!(
            "is quantised already ({}), expected F32, F16 or BF16; --allow-requantize makes {} of it, at a loss",
            t.ty, step.ty
        ));
    }
    let is_head = matches!(Role::of(&t.name), Role::Output | Role::Embedding);
    let needs = mix::needs_importance(step.ty, o.recipe) && !is_head && !step.is_copy();
    if needs && importance.is_none_or(|i| i.get(&t.name).is_none()) {
        let file = o.recipe.map_or_else(String::new, |recipe| format!(" in a file of type {}", recipe.name()));
        return fault(format!("needs importances as {}{file}; give a matrix that has them with --imatrix", step.ty));
    }
    Ok(())
}

/// Chooses types, knowing the whole model.
struct Chooser<'o> {
    options: &'o Options,
    facts: Facts,
    /// The place of each tensor among those of its role.
    places: HashMap<String, usize>,
    is_sidecar: bool,
}

impl<'o> Chooser<'o> {
    fn new(head: &Gguf, tensors: &[(usize, &TensorInfo)], options: &'o Options, has_imatrix: bool) -> Self {
        let arch = head.str("general.architecture").ok().flatten().unwrap_or_default();
        let count = |key: &str| {
            let key = format!("{arch}.{key}");
            let first = head.u32s(&key).ok().flatten().and_then(|all| all.first().copied());
            first.or_else(|| head.u32(&key).ok().flatten()).map(|n| n as usize)
        };
        let layers = tensors.iter().filter_map(|(_, t)| layer_of(&t.name));
        let n_layer = count("block_count").unwrap_or_else(|| layers.max().map_or(0, |l| l as usize + 1));
        let n_head = count("attention.head_count").unwrap_or(0);
        let n_head_kv = count("attention.head_count_kv").unwrap_or(n_head);
        let n_expert = count("expert_count").unwrap_or(0);
        // Layers that share have lost tensors; the others keep their places.
        let shares = head.get(lisa::VERSION_KEY).is_some();

        let mut sorted: Vec<&str> = tensors.iter().map(|(_, t)| t.name.as_str()).collect();
        sorted.sort_unstable_by_key(|name| (layer_of(name), *name));
        let (mut places, mut counts) = (HashMap::new(), HashMap::<Role, usize>::new());
        for name in sorted {
            let role = Role::of(name);
            let next = counts.entry(role).or_default();
            let by_layer = shares || n_expert > 1 && matches!(role, Role::Up | Role::Gate | Role::Down);
            let place = layer_of(name).filter(|_| by_layer).map_or(*next, |l| l as usize);
            *next += 1;
            places.insert(name.to_owned(), place);
        }
        let n_value = if shares { n_layer } else { counts.get(&Role::Value).copied().unwrap_or(0) };
        let facts = Facts {
            arch: arch.into(),
            n_layer,
            n_expert,
            n_gqa: n_head.checked_div(n_head_kv).unwrap_or(0),
            n_value,
            tied: !counts.contains_key(&Role::Output),
            has_imatrix,
        };
        Self { options, facts, places, is_sidecar: lisa::is_sidecar(head) }
    }

    /// The type for a tensor, before its rows are looked at; `None` where it stays as it is.
    fn choose(&self, t: &TensorInfo) -> Option<GgmlType> {
        let (o, recipe) = (self.options, self.options.recipe?);
        let named = || {
            // A pattern that cannot be matched (it backtracks without end) names nothing.
            o.tensor_types.iter().find(|(pattern, _)| pattern.is_match(&t.name).unwrap_or(false)).map(|(_, ty)| *ty)
        };
        if is_lisa_name(&t.name) {
            // Small next to what they save: they keep their type unless asked for. The rest of the extension is F32.
            let is_factor = Part::parse(&t.name).is_some_and(|(_, part)| !part.is_f32());
            return is_factor.then(|| named().or(self.is_sidecar.then_some(recipe.base()))).flatten();
        }
        if !mix::is_quantizable(&t.name, &t.shape) || o.keep_output && t.name == "output.weight" {
            return None;
        }
        let role = Role::of(&t.name);
        match role {
            Role::Embedding if o.embedding_type.is_some() && (t.name == "token_embd.weight" || named().is_none()) => {
                return o.embedding_type;
            }
            Role::Output if o.output_type.is_some() => return o.output_type,
            _ => {}
        }
        if let Some(ty) = named() {
            return Some(ty);
        }
        if o.pure || recipe.base().is_float() {
            return Some(recipe.base());
        }
        match o.output_type {
            Some(ty) if role == Role::Embedding && self.facts.tied => Some(ty),
            _ => Some(mix::choose(recipe, role, self.places[&t.name], &t.shape, &self.facts)),
        }
    }
}

/// The layer a tensor's name begins with.
fn layer_of(name: &str) -> Option<u32> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}
