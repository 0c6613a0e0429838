//! What a study combines and measures, as its TOML file says it. Paths are relative to the file.

use crate::attention::CacheType;
use crate::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize};
use std::path::{Path, PathBuf};

/// A study.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// What the report is called.
    #[serde(default)]
    pub title: Option<String>,
    /// Folder of records, report and models made on the way; by default the file's name without `.toml`.
    #[serde(default)]
    pub output: Option<PathBuf>,
    /// Threads; 0 or less: as many as the process may use.
    #[serde(default, deserialize_with = "zero_or_more")]
    pub threads: usize,
    /// Types of the cache.
    #[serde(default = "default_kv")]
    pub kv: Vec<String>,
    /// Models and their quantisations.
    #[serde(rename = "model")]
    pub models: Vec<ModelEntry>,
    /// Ways of sharing attention, beside the model as it is.
    #[serde(default, rename = "sharing")]
    pub sharings: Vec<SharingEntry>,
    /// Measurements of quality; without it none.
    #[serde(default)]
    pub quality: Quality,
    /// Measurements of speed.
    #[serde(default)]
    pub speed: Speed,
}

/// A number, of which less than nothing counts as nothing, as on the command line.
fn zero_or_more<'de, D: Deserializer<'de>>(value: D) -> std::result::Result<usize, D::Error> {
    i64::deserialize(value).map(|n| usize::try_from(n).unwrap_or(0))
}

fn default_kv() -> Vec<String> {
    vec!["f16".into()]
}

/// A model and what is made of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ModelEntry {
    /// What it is called in the report.
    pub name: String,
    /// The file that quantisations are made from.
    pub file: PathBuf,
    /// The file that predictions are compared with; by default `file`.
    #[serde(default)]
    pub baseline: Option<PathBuf>,
    /// Its quantisations; none: the file as it is.
    #[serde(default)]
    pub quants: Vec<QuantEntry>,
    /// JSON of `lisa-cpp analyze --json`, for the report.
    #[serde(default)]
    pub analyze: Option<PathBuf>,
}

/// A quantisation: the name of a type to make, or a file.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum QuantEntry {
    /// `"Q4_K_M"`, or `"as-is"` for the model's file.
    Type(String),
    /// A table.
    Table(QuantTable),
}

impl QuantEntry {
    /// What it is called in the report.
    pub fn name(&self) -> String {
        match self {
            QuantEntry::Type(ty) if ty == AS_IS => "as is".into(),
            QuantEntry::Type(ty) => ty.clone(),
            QuantEntry::Table(QuantTable { name: Some(name), .. }) => name.clone(),
            QuantEntry::Table(QuantTable { file: Some(file), .. }) => {
                file.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned())
            }
            QuantEntry::Table(QuantTable { ty, .. }) => ty.clone().unwrap_or_default(),
        }
    }

    /// A file that is there.
    pub fn file(path: PathBuf) -> Self {
        QuantEntry::Table(QuantTable { name: None, file: Some(path), ty: None, imatrix: None })
    }
}

/// The type that stands for the model's file.
pub const AS_IS: &str = "as-is";

/// The long form of a quantisation.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct QuantTable {
    /// What it is called in the report; by default the type or the file's name.
    #[serde(default)]
    pub name: Option<String>,
    /// A file that is there.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// A type to make.
    #[serde(default, rename = "type")]
    pub ty: Option<String>,
    /// Importance matrix for making it.
    #[serde(default)]
    pub imatrix: Option<PathBuf>,
}

/// A way of sharing attention.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SharingEntry {
    /// What it is called in the report.
    pub name: String,
    /// Layers, or a file with a plan, as `--share` takes them.
    #[serde(default)]
    pub share: Option<String>,
    /// A sidecar, as `--lisa` takes it.
    #[serde(default)]
    pub lisa: Option<PathBuf>,
}

/// What is measured of a cell's quality.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Quality {
    /// The text of perplexity and divergence; none: neither is measured.
    pub text: Option<PathBuf>,
    /// Tokens per window; 0: 512.
    pub ctx_size: usize,
    /// Windows; 0 or less: all.
    #[serde(deserialize_with = "zero_or_more")]
    pub chunks: usize,
    /// Benchmarks by name, and files of questions.
    pub tasks: Vec<String>,
    /// Folder of the benchmarks' files.
    pub data: Option<PathBuf>,
    /// Questions of each benchmark; 0: all.
    pub limit: usize,
}

impl Quality {
    /// Tokens per window.
    pub fn n_ctx(&self) -> usize {
        if self.ctx_size == 0 { 512 } else { self.ctx_size }
    }
}

/// What is measured of a cell's speed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Speed {
    /// Length of the prompt; 0: not measured.
    pub prompt: usize,
    /// Tokens to generate; 0: not measured.
    pub generate: usize,
    /// Tokens in the context before.
    pub depths: Vec<usize>,
    /// Repetitions, after one that does not count.
    pub repetitions: usize,
}

impl Default for Speed {
    fn default() -> Self {
        Self { prompt: 512, generate: 64, depths: vec![0], repetitions: 3 }
    }
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] naming the file, and the line or field at fault.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.into(), source })?;
        let mut config = Self::parse(text.trim_start_matches('\u{feff}')).map_err(|(line, what)| {
            let place = line.map_or_else(|| path.display().to_string(), |l| format!("{}:{l}", path.display()));
            Error::Data { place, what }
        })?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        config.resolve(&folder);
        if config.output.is_none() {
            config.output = Some(path.with_extension(""));
        }
        if config.title.is_none() {
            config.title = path.file_stem().map(|s| s.to_string_lossy().into_owned());
        }
        Ok(config)
    }

    /// Reads TOML text; the error has the line where there is one.
    ///
    /// # Errors
    /// What is wrong and where.
    pub fn parse(text: &str) -> std::result::Result<Self, (Option<usize>, String)> {
        let config: Config = toml::from_str(text).map_err(|e| {
            let line = e.span().map(|s| text[..s.start.min(text.len())].matches('\n').count() + 1);
            (line, e.message().split('\n').collect::<Vec<_>>().join(" "))
        })?;
        config.check().map_err(|what| (None, what))?;
        Ok(config)
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// Names the field at fault.
    pub fn check(&self) -> std::result::Result<(), String> {
        if self.models.is_empty() {
            return Err("no [[model]]: nothing to study".into());
        }
        let kv = self.kv.iter().map(|kv| kv.parse::<CacheType>().map_err(|e| format!("kv: {e}")));
        let kv = kv.collect::<std::result::Result<Vec<_>, _>>()?;
        if let Some((i, _)) = kv.iter().enumerate().find(|(i, ty)| kv[..*i].contains(ty)) {
            return Err(format!("kv: '{}' is given twice", self.kv[i]));
        }
        if self.kv.is_empty() {
            return Err("kv is empty, expected types of the cache such as [\"f16\"]".into());
        }
        let names = |all: Vec<&str>, what: &str| match all.iter().enumerate().find(|(i, n)| all[..*i].contains(n)) {
            Some((_, name)) => Err(format!("{what}: the name '{name}' is given twice")),
            None => Ok(()),
        };
        names(self.models.iter().map(|m| m.name.as_str()).collect(), "[[model]]")?;
        names(self.sharings.iter().map(|s| s.name.as_str()).collect(), "[[sharing]]")?;
        for s in &self.sharings {
            if s.share.is_some() == s.lisa.is_some() {
                return Err(format!("[[sharing]] '{}': expected either share or lisa", s.name));
            }
            if s.name == super::grid::NO_SHARING {
                return Err(format!("[[sharing]]: the name '{}' is that of the model as it is", s.name));
            }
        }
        for q in self.models.iter().flat_map(|m| &m.quants) {
            if let QuantEntry::Table(t) = q {
                if t.file.is_some() == t.ty.is_some() {
                    return Err("quants: expected either file or type in each".into());
                }
                if t.imatrix.is_some() && t.ty.is_none() {
                    return Err("quants: imatrix is for a type to make".into());
                }
            }
        }
        for m in &self.models {
            // A report tells cells apart by these names.
            let quants: Vec<String> = m.quants.iter().map(QuantEntry::name).collect();
            names(quants.iter().map(String::as_str).collect(), &format!("quants of '{}'", m.name))
                .map_err(|e| format!("{e}, expected a name for each"))?;
        }
        if self.speed.repetitions == 0 || self.speed.depths.is_empty() {
            return Err("[speed]: repetitions must be at least 1, and depths have at least one".into());
        }
        Ok(())
    }

    /// Makes relative paths relative to `folder`.
    fn resolve(&mut self, folder: &Path) {
        let at = |p: &mut PathBuf| *p = folder.join(&*p);
        for m in &mut self.models {
            at(&mut m.file);
            m.baseline.as_mut().map(at);
            m.analyze.as_mut().map(at);
            for q in &mut m.quants {
                if let QuantEntry::Table(t) = q {
                    t.file.as_mut().map(at);
                    t.imatrix.as_mut().map(at);
                }
            }
        }
        for s in &mut self.sharings {
            s.lisa.as_mut().map(at);
            // A list of layers is no file.
            if let Some(share) = &mut s.share {
                let file = folder.join(&*share);
                if file.is_file() {
                    *share = file.to_string_lossy().into_owned();
                }
            }
        }
        self.output.as_mut().map(at);
        self.quality.text.as_mut().map(at);
        self.quality.data.as_mut().map(at);
        for t in &mut self.quality.tasks {
            let file = folder.join(&*t);
            if file.is_file() {
                *t = file.to_string_lossy().into_owned();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: &str = "[[model]]\nname = \"a\"\nfile = \"a.gguf\"\n";

    #[test]
    fn defaults_and_forms() {
        let text = format!(
            "{MODEL}quants = [\"Q4_0\", \"as-is\", {{ name = \"mine\", file = \"b.gguf\" }}]\n\
             [[sharing]]\nname = \"x\"\nshare = \"5-7\"\n[quality]\ntext = \"t\"\nchunks = 4\n[speed]\ndepths = [0, 512]\n"
        );
        let c = Config::parse(&text).unwrap();
        assert_eq!((c.kv.len(), c.quality.n_ctx(), c.speed.repetitions), (1, 512, 3));
        assert!(matches!(&c.models[0].quants[2], QuantEntry::Table(t) if t.name.as_deref() == Some("mine")));
    }

    #[test]
    fn negative_numbers_are_those_of_the_flags() {
        let c = Config::parse(&format!("threads = -1\n{MODEL}[quality]\nchunks = -1\n")).unwrap();
        assert_eq!((c.threads, c.quality.chunks), (0, 0));
    }

    #[test]
    fn mistakes_name_the_field_and_line() {
        for (text, line, named) in [
            ("", None, "model"),
            (&format!("{MODEL}quantss = []"), Some(4), "quantss"),
            (&format!("{MODEL}{MODEL}"), None, "'a' is given twice"),
            (&format!("kv = [\"q3\"]\n{MODEL}"), None, "kv"),
            (&format!("{MODEL}quants = [{{ name = \"x\" }}]"), None, "file or type"),
            (
                &format!("{MODEL}quants = [\"Q4_0\", {{ type = \"Q4_0\", imatrix = \"i\" }}]"),
                None,
                "'Q4_0' is given twice",
            ),
            (
                &format!("{MODEL}quants = [{{ file = \"a/x.gguf\" }}, {{ file = \"b/x.gguf\" }}]"),
                None,
                "'x' is given twice",
            ),
            (&format!("kv = [\"f16\", \"f16\"]\n{MODEL}"), None, "kv: 'f16' is given twice"),
            (&format!("{MODEL}[[sharing]]\nname = \"x\""), None, "either share or lisa"),
            (&format!("{MODEL}[speed]\nrepetitions = 0"), None, "repetitions"),
            ("x = ", Some(1), ""),
        ] {
            let (at, what) = Config::parse(text).unwrap_err();
            assert!(what.contains(named), "{text}: {what}");
            if line.is_some() {
                assert_eq!(at, line, "{text}: {what}");
            }
        }
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.toml");
        std::fs::write(dir.path().join("p.plan"), "3").unwrap();
        std::fs::write(&path, format!("{MODEL}[[sharing]]\nname = \"x\"\nshare = \"p.plan\"\n")).unwrap();
        let c = Config::read(&path).unwrap();
        assert_eq!(c.models[0].file, dir.path().join("a.gguf"));
        assert_eq!(c.output.unwrap(), dir.path().join("s"));
        assert_eq!(c.sharings[0].share.as_deref(), dir.path().join("p.plan").to_str());
    }
}
