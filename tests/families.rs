//! Every model family against an independent implementation: tiny random-weight models and the logits llama.cpp gives
//! for them (see `data/families/README.md`).

#[path = "common/reference.rs"]
mod reference;

use lisa_cpp::{Model, ModelFile, ModelParams};
use reference::{Subject, folder, gunzip, names};

fn load(name: &'static str) -> Subject {
    let folder = folder("families");
    let file = ModelFile::from_bytes(name, gunzip(&folder.join(format!("{name}.gguf.gz"))));
    let model = Model::load(&file, ModelParams::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let reference = gunzip(&folder.join(format!("{name}.json.gz")));
    Subject::new(name, model, serde_json::from_slice(&reference).expect("reference logits"))
}

macro_rules! families {
    ($($name:ident)*) => { $(
        mod $name {
            use crate::reference;
            const NAME: &str = stringify!($name);
            #[test]
            fn matches_the_reference() { reference::matches_the_reference(&super::load(NAME)) }
            #[test]
            fn default_mode_keeps_float_weights_exact() { reference::default_mode_keeps_float_weights_exact(&super::load(NAME)) }
            #[test]
            fn compressed_caches_stay_close() { reference::compressed_caches_stay_close(&super::load(NAME)) }
            #[test]
            fn any_batching_is_the_same() { reference::any_batching_is_the_same(&super::load(NAME)) }
            #[test]
            fn any_thread_count_is_identical() { reference::any_thread_count_is_identical(&super::load(NAME)) }
            #[test]
            fn truncation_forgets() { reference::truncation_forgets(&super::load(NAME)) }
        }
    )*

        /// A model added to the folder is tested, or this says so.
        #[test]
        fn every_model_of_the_folder_is_listed() {
            let mut listed = vec![$(stringify!($name)),*];
            listed.sort_unstable();
            assert_eq!(names(&folder("families"), ".gguf.gz"), listed);
        }
    };
}

families! {
    llama llama_mha_tied llama_mqa llama_linear llama_linear_old_key llama_rope_freqs llama_yarn llama_head_dim
    llama_bias llama_window_key llama_experts qwen3moe olmoe granitemoe
    internlm2 ernie4_5 exaone smollm3 smollm3_tied
    olmo2 olmo2_windows mistral3 mistral3_plain
    granite granite_unturned minicpm minicpm_longrope
    qwen2 qwen2_tied_yarn qwen3 qwen3_tied
    gemma gemma2 gemma2_pattern
    gemma3 gemma3_pattern gemma3_linear gemma3_softcap_untied
    phi3 phi3_longrope phi3_partial_tied phi3_window_key
}

#[test]
fn windows_are_all_that_is_seen() {
    for name in ["olmo2_windows", "gemma2", "gemma2_pattern", "gemma3", "gemma3_pattern"] {
        reference::windows_are_all_that_is_seen(&load(name));
    }
}
