//! Flags of llama.cpp that this program does not have.
//!
//! Whoever pastes a llama.cpp command line learns in one line which flag stands in the way and why, instead of a guess at a
//! flag that is spelt like it. None is accepted and then ignored.

/// Why the flag `name` (dashes included, `_` as `-`) is not here; `None` if llama.cpp has no such flag either, or has it for
/// purposes of its own.
pub fn why(name: &str) -> Option<&'static str> {
    FLAGS.iter().find(|(_, names)| names.iter().any(|n| matches(n, name))).map(|(why, _)| *why)
}

/// Families of flags have a star where their names differ, at the beginning or the end.
fn matches(pattern: &str, name: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => name.starts_with("--") && name.ends_with(end),
        (_, Some(start)) => name.starts_with(start),
        _ => pattern == name,
    }
}

const FLAGS: &[(&str, &[&str])] = &[
    (
        "everything runs on the CPU and nothing can be moved elsewhere: leave it out",
        &[
            "-ngl",
            "--gpu-layers",
            "--n-gpu-layers",
            "-sm",
            "--split-mode",
            "-ts",
            "--tensor-split",
            "-mg",
            "--main-gpu",
            "-dev",
            "--device",
            "--list-devices",
            "-ot",
            "--override-tensor",
            "-kvo",
            "--kv-offload",
            "-nkvo",
            "--no-kv-offload",
            "--op-offload",
            "--no-op-offload",
            "-nopo",
            "--no-host",
            "--rpc",
            "-fit",
            "--fit",
            "-fitt",
            "--fit-target",
            "-fitc",
            "--fit-ctx",
            "-bs",
            "--backend-sampling",
        ],
    ),
    (
        "attention always streams its softmax, and caches of every type work with it: leave it out",
        &["-fa", "--flash-attn"],
    ),
    ("weights are always repacked for the CPU at hand: leave it out", &["--repack", "-nr", "--no-repack", "-rtr"]),
    ("nothing is run before the prompt: leave it out", &["--warmup", "--no-warmup"]),
    ("chat templates are always read as Jinja: leave it out", &["--jinja"]),
    ("chat templates are always read as Jinja; --in-prefix and --in-suffix do without one", &["--no-jinja"]),
    (
        "the file is mapped unless --no-mmap is given; --mlock keeps it in memory",
        &["-lm", "--load-mode", "-mmp", "-lzm", "--lazy-mode", "-dio", "--direct-io"],
    ),
    (
        "threads are placed by the operating system: taskset or numactl bind them",
        &[
            "-C",
            "--cpu-mask",
            "-Cr",
            "--cpu-range",
            "-Cb",
            "--cpu-mask-batch",
            "-Crb",
            "--cpu-range-batch",
            "--cpu-strict",
            "--cpu-strict-batch",
            "--numa",
        ],
    ),
    ("threads run at the priority of the process: nice changes it", &["--prio", "--prio-batch"]),
    ("how threads wait for work cannot be chosen: leave it out", &["--poll", "--poll-batch"]),
    (
        "models are files: download it and give its path to --model",
        &[
            "-hf",
            "-hfr",
            "--hf-repo",
            "-hff",
            "--hf-file",
            "-hft",
            "--hf-token",
            "-mu",
            "--model-url",
            "-dr",
            "--docker-repo",
            "--offline",
            "--fim-*",
            "--gpt-oss-*",
            "--vision-*",
            "--embd-gemma-default",
            "-cl",
            "--cache-list",
        ],
    ),
    (
        "adapters and control vectors are not supported; --lisa takes sidecars of attention modules",
        &[
            "--lora",
            "--lora-scaled",
            "--lora-init-without-apply",
            "--control-vector",
            "--control-vector-scaled",
            "--control-vector-layer-range",
        ],
    ),
    (
        "groups of positions are not supported; --rope-scaling and --rope-scale stretch the context",
        &["-gan", "--grp-attn-n", "-gaw", "--grp-attn-w"],
    ),
    ("the state of a prompt cannot be kept in a file", &["--prompt-cache", "--prompt-cache-all", "--prompt-cache-ro"]),
    (
        "states of a context are not kept beside it: leave it out",
        &[
            "-ctxcp",
            "--ctx-checkpoints",
            "--swa-checkpoints",
            "-cms",
            "--checkpoint-min-step",
            "-cram",
            "--cache-ram",
            "--cache-idle-slots",
            "--no-cache-idle-slots",
        ],
    ),
    (
        "drafts of what comes next are not supported",
        &[
            "-md",
            "--draft",
            "--draft-*",
            "*-draft",
            "--spec-*",
            "--mtp",
            "--dflash",
            "--eagle3",
            "-devd",
            "-ngld",
            "-td",
            "-tbd",
            "-Cd",
            "-Crd",
            "-Cbd",
            "-Crbd",
            "-ctkd",
            "-ctvd",
            "-otd",
            "-cmoed",
            "-ncmoed",
            "-hfd",
            "-hfrd",
            "-lcs",
            "--lookup-cache-static",
            "-lcd",
            "--lookup-cache-dynamic",
        ],
    ),
    (
        "there is no other device: experts are computed by the CPU anyway",
        &["-cmoe", "--cpu-moe", "-ncmoe", "--n-cpu-moe", "-ncffn", "--n-cpu-ffn"],
    ),
    (
        "there is one sequence at a time (eval has --parallel): leave it out",
        &[
            "-np",
            "--parallel",
            "-ns",
            "--sequences",
            "-cb",
            "--cont-batching",
            "-nocb",
            "--no-cont-batching",
            "-kvu",
            "--kv-unified",
            "-no-kvu",
            "--no-kv-unified",
        ],
    ),
    ("the cache has no holes: leave it out", &["-dt", "--defrag-thold"]),
    (
        "images, sound and video are not supported",
        &["-mm", "-mmu", "-mmdev", "--mmproj*", "--no-mmproj*", "--image*", "--audio", "--video*", "--mtmd-*"],
    ),
    (
        "embeddings are not supported",
        &[
            "--pooling",
            "--attention",
            "-embd",
            "--embedding",
            "--embeddings",
            "--embd-normalize",
            "--embd-output-format",
        ],
    ),
    ("infilling is not supported", &["--spm-infill"]),
    (
        "what a model thinks is a part of its answer; --chat-template-kwargs reaches templates that can do without",
        &["-rea", "--reasoning*", "--no-reasoning*", "--skip-chat-parsing", "--no-skip-chat-parsing"],
    ),
    ("quantize refuses values that are not finite; nothing else looks at all of them", &["--check-tensors"]),
    ("answers have no colours: leave it out", &["-co", "--color"]),
    ("without a terminal, lines are read plainly anyway: leave it out", &["--simple-io"]),
    ("--file reads text; bytes that are none cannot be tokenised", &["-bf", "--binary-file"]),
    ("the start token stands at the beginning alone", &["--in-prefix-bos"]),
    ("the timings at the end count the tokens", &["-ptc", "--print-token-count"]),
    ("timings are shown unless --no-perf is given", &["--show-timings", "--no-show-timings"]),
    ("--help shows all flags", &["--usage"]),
    ("there are no completions for shells", &["--completion-bash"]),
    (
        "lisa-cpp eval scores benchmarks: see eval --help",
        &[
            "--hellaswag",
            "--hellaswag-tasks",
            "--winogrande",
            "--winogrande-tasks",
            "--multiple-choice",
            "--multiple-choice-tasks",
        ],
    ),
    ("the perplexity is computed unless --no-ppl is given: leave it out", &["--ppl"]),
    ("inspect shows what an importance matrix holds; statistics over it are not supported", &["--show-statistics"]),
    ("layers cannot be left out; --share and --lisa make them cheaper", &["--prune-layers"]),
    ("-cnv chats; --reverse-prompt ends an answer early", &["-i", "--interactive", "-if", "--interactive-first"]),
    ("a line that ends with \\ goes on in the next: leave it out", &["-mli", "--multiline-input"]),
    (
        "standard error carries the messages: 2> FILE keeps them, --log-disable leaves errors alone",
        &[
            "--log-file",
            "--log-jsonl",
            "--log-colors",
            "--log-prefix",
            "--log-timestamps",
            "--log-prompts-dir",
            "--no-log-jsonl",
            "--no-log-prefix",
            "--no-log-timestamps",
            "-v",
            "--verbose",
            "--log-verbose",
            "-lv",
            "--verbosity",
            "--log-verbosity",
        ],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_stands_in_one_place() {
        let mut names: Vec<_> = FLAGS.iter().flat_map(|(_, names)| names.iter()).collect();
        let n = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), n);
    }

    #[test]
    fn families_of_flags() {
        for name in ["--draft-min", "--threads-batch-draft", "--spec-type", "--reasoning-format", "--image-min-tokens"]
        {
            assert!(why(name).is_some(), "{name}");
        }
        for name in ["--drafty", "-draft", "--imaginary", "--color-x"] {
            assert!(why(name).is_none(), "{name}");
        }
    }
}
