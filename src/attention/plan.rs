//! The sharing plan: which layers take their attention weights, or their keys and values, from an earlier one.

use std::collections::BTreeMap;
use std::str::FromStr;

use ggml_ext::lisa::{Activation, Domain, Kind, LayerMeta, LisaMeta, Provenance};

use super::AttentionShape;

/// What one layer takes from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// How the layer uses its source; never [`Kind::Full`].
    pub kind: Kind,
    /// The layer it takes from, an earlier one.
    pub source: usize,
}

/// The layers that share, by number; all others compute their own attention.
///
/// From a string it is a list of layers that take the attention weights of another as they are (Shared Attention, arXiv 2407.12866):
/// `5` takes those of layer 4, `8:4` those of layer 4, `4-9` means each of these layers; after `kv:` an item's layers take
/// keys and values instead (Cross-Layer Attention, arXiv 2405.12981). Items are separated by commas, spaces or lines; `#` begins a comment.
///
/// ```
/// use lisa_cpp::attention::SharePlan;
/// let plan: SharePlan = "5-7, 9:4, kv:11".parse().unwrap();
/// assert_eq!(plan.get(6).unwrap().source, 5);
/// assert!(plan.get(8).is_none());
/// assert!("5:5".parse::<SharePlan>().is_err());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SharePlan {
    shares: BTreeMap<usize, Share>,
}

/// Layers of one item of a plan; far above any model's.
const MAX_LAYER: usize = 1 << 12;

impl FromStr for SharePlan {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let mut plan = Self::default();
        let items = s.lines().map(|l| l.split('#').next().unwrap_or_default());
        for item in items.flat_map(|l| l.split([',', ' ', '\t'])).filter(|i| !i.is_empty()) {
            plan.add(item).map_err(|e| format!("'{item}': {e}"))?;
        }
        if plan.is_empty() {
            return Err("no layers given".into());
        }
        Ok(plan)
    }
}

impl SharePlan {
    fn add(&mut self, item: &str) -> Result<(), String> {
        let number = |s: &str| -> Result<usize, String> {
            let n = s.parse().ok().filter(|&n| n < MAX_LAYER);
            n.ok_or_else(|| "expected a layer such as 5, 8:4 (layer 8 from layer 4), 4-9 or kv:5".to_string())
        };
        let (kind, rest) = match item.strip_prefix("kv:") {
            Some(rest) => (Kind::Kv, rest),
            None => (Kind::Shared, item),
        };
        let (layers, source) = match rest.split_once(':') {
            Some((layers, source)) => (layers, Some(number(source)?)),
            None => (rest, None),
        };
        let (first, last) = match layers.split_once('-') {
            Some((a, b)) => (number(a)?, number(b)?),
            None => (number(layers)?, number(layers)?),
        };
        if first > last {
            return Err(format!("the range ends before it begins: {first} is after {last}"));
        }
        for layer in first..=last {
            let source = match source {
                Some(s) if s >= layer => {
                    return Err(format!("layer {layer}: its source {s} is not an earlier layer"));
                }
                Some(s) => s,
                None => layer.checked_sub(1).ok_or("layer 0: there is no layer before it")?,
            };
            if self.shares.insert(layer, Share { kind, source }).is_some() {
                return Err(format!("layer {layer} is given twice"));
            }
        }
        Ok(())
    }

    /// The plan that a sidecar's or merged model's metadata describe.
    pub fn from_meta(meta: &LisaMeta) -> Self {
        let layers = meta.layers.iter().enumerate();
        Self { shares: layers.filter_map(|(i, l)| Some((i, Share { kind: l.kind, source: l.source? }))).collect() }
    }

    /// The metadata of a model of `n_layer` layers with this plan and no modules.
    ///
    /// # Panics
    /// When the plan has a layer that the model has not; see [`SharePlan::check_layers`].
    pub fn to_meta(&self, n_layer: usize, fingerprint: String) -> LisaMeta {
        let mut layers = vec![LayerMeta::FULL; n_layer];
        for (layer, Share { kind, source }) in self.iter() {
            layers[layer] = LayerMeta { kind, source: Some(source), rank: 0 };
        }
        let (activation, domain, trained) = (Activation::Relu, Domain::Log, Provenance::default());
        LisaMeta { fingerprint, layers, activation, domain, scale: 1.0, trained }
    }

    /// What `layer` takes from another; `None` where it computes its own attention.
    pub fn get(&self, layer: usize) -> Option<Share> {
        self.shares.get(&layer).copied()
    }

    /// True when no layer shares.
    pub fn is_empty(&self) -> bool {
        self.shares.is_empty()
    }

    /// The layers that share, in order.
    pub fn iter(&self) -> impl Iterator<Item = (usize, Share)> + '_ {
        self.shares.iter().map(|(&layer, &share)| (layer, share))
    }

    /// The layer whose keys and values `layer` uses: its own, or through a chain of `kv` layers another's.
    pub fn kv_owner(&self, layer: usize) -> usize {
        match self.get(layer) {
            Some(Share { kind: Kind::Kv, source }) => self.kv_owner(source),
            _ => layer,
        }
    }

    /// Checks the layers' numbers against a model of `n_layer`.
    ///
    /// # Errors
    /// Names the layer that the model does not have.
    pub fn check_layers(&self, n_layer: usize) -> Result<(), String> {
        match self.shares.keys().next_back() {
            Some(&layer) if layer >= n_layer => {
                Err(format!("layer {layer}: the model has {n_layer} layers, 0 to {}", n_layer - 1))
            }
            _ => Ok(()),
        }
    }

    /// Checks that sources have what their readers take: `layer(i)` gives the shape of layer `i`'s attention and which rotary
    /// embedding turns its keys; `None` where it has no attention.
    ///
    /// # Errors
    /// Names the layer and what differs between it and its source.
    pub fn check_sources(&self, layer: impl Fn(usize) -> Option<(AttentionShape, usize)>) -> Result<(), String> {
        for (i, Share { kind, source }) in self.iter() {
            let of = |of: usize| layer(of).ok_or_else(|| format!("layer {i} ({kind}): layer {of} has no attention"));
            let ((own, own_rope), (src, src_rope)) = (of(i)?, of(source)?);
            let window = |s: AttentionShape| s.window.map_or("the whole context".into(), |w| format!("{w} positions"));
            if own.window != src.window {
                return Err(format!(
                    "layer {i} ({kind}) attends to {}, its source {source} to {}: they cannot share",
                    window(own),
                    window(src)
                ));
            }
            let heads = |s: AttentionShape| format!("{} query and {} key/value heads", s.n_head, s.n_head_kv);
            if heads(own) != heads(src) {
                let what = format!("it has {}, its source {source} has {}", heads(own), heads(src));
                return Err(format!("layer {i} ({kind}): {what}"));
            }
            if kind == Kind::Kv {
                let owner = self.kv_owner(source);
                if let Some(share) = self.get(owner) {
                    let what = format!("kind {} and keeps no keys", share.kind);
                    return Err(format!("layer {i} (kv): its source {owner} is of {what}"));
                }
                if own_rope != src_rope {
                    return Err(format!("layer {i} (kv): the keys of its source {source} turn at other frequencies"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(s: &str) -> SharePlan {
        s.parse().unwrap()
    }

    #[test]
    fn command_line_plans() {
        let p = plan("4-6,8:4 kv:9\n# a comment\n11:3 # another");
        let all: Vec<_> = p.iter().map(|(l, s)| (l, s.kind.name(), s.source)).collect();
        let shared = "shared";
        assert_eq!(
            all,
            [(4, shared, 3), (5, shared, 4), (6, shared, 5), (8, shared, 4), (9, "kv", 8), (11, shared, 3)]
        );
    }

    #[test]
    fn mistakes_name_the_layer() {
        for (text, named) in [
            ("", "no layers"),
            ("x", "'x': expected a layer"),
            ("5:6", "layer 5: its source 6"),
            ("5:5", "layer 5: its source 5"),
            ("0", "layer 0: there is no layer before it"),
            ("9-4", "9 is after 4"),
            ("4-6,5", "layer 5 is given twice"),
            ("4-", "'4-'"),
            ("99999", "'99999'"),
        ] {
            let message = text.parse::<SharePlan>().unwrap_err();
            assert!(message.contains(named), "{text}: {message}");
        }
        let message = plan("5-30").check_layers(30).unwrap_err();
        assert!(message.contains("layer 30") && message.contains("30 layers"), "{message}");
        assert!(plan("5-29").check_layers(30).is_ok());
    }

    #[test]
    fn sources_must_have_what_readers_take() {
        let shape = AttentionShape {
            n_head: 4,
            n_head_kv: 2,
            head_dim_k: 8,
            head_dim_v: 8,
            scale: 1.0,
            softcap: None,
            window: None,
        };
        let every_third_global =
            |i: usize| Some(if i % 3 == 2 { (shape, 0) } else { (AttentionShape { window: Some(16), ..shape }, 1) });
        let refused = |s: &str| plan(s).check_sources(every_third_global).unwrap_err();
        assert!(plan("1, 4, 6:4").check_sources(every_third_global).is_ok());
        let message = refused("3");
        assert!(message.contains("layer 3 (shared)") && message.contains("16 positions"), "{message}");
        let message = plan("4, kv:5").check_sources(|_| Some((shape, 0))).unwrap_err();
        assert!(message.contains("layer 5 (kv)") && message.contains("source 4"), "{message}");
        let message = plan("kv:5").check_sources(|i| Some((shape, i))).unwrap_err();
        assert!(message.contains("other frequencies"), "{message}");
        assert!(plan("kv:5, kv:6, 7").check_sources(|_| Some((shape, 0))).is_ok());
        assert_eq!(plan("kv:5, kv:6").kv_owner(6), 4);
        let message = plan("4, 5").check_sources(|i| (i != 4).then_some((shape, 0))).unwrap_err();
        assert_eq!(message, "layer 4 (shared): layer 4 has no attention");
    }
}
