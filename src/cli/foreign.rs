//! Flags of llama.cpp that this program does not have.
//!
//! Whoever pastes a llama.cpp command line learns in one line which flag stands in the way and why, instead of a guess at a
//! flag that is spelt like it. None is accepted and then ignored.

/// Why the flag `name` (dashes included, `_` as `-`) is not here; `None` if llama.cpp has no such flag either, or has it for
/// purposes of its own.
pub fn why(name: &str) -> Option<&'static str> {
    FLAGS.iter().find(|(_, names)| names.contains(&name)).map(|(why, _)| *why)
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
    ("the file is mapped unless --no-mmap is given; --mlock keeps it in memory", &["-lm", "--load-mode", "-mmp"]),
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
            "-cl",
            "--cache-list",
        ],
    ),
    (
        "constrained generation is not supported",
        &["--grammar", "--grammar-file", "-j", "--json-schema", "-jf", "--json-schema-file"],
    ),
    (
        "adapters and control vectors are not supported; --lisa takes sidecars of attention modules",
        &["--lora", "--lora-scaled", "--control-vector", "--control-vector-scaled", "--control-vector-layer-range"],
    ),
    (
        "groups of positions are not supported; --rope-scaling and --rope-scale stretch the context",
        &["-gan", "--grp-attn-n", "-gaw", "--grp-attn-w"],
    ),
    ("the state of a prompt cannot be kept in a file", &["--prompt-cache", "--prompt-cache-all", "--prompt-cache-ro"]),
    (
        "drafts by a second model are not supported",
        &["-md", "--model-draft", "--draft", "--draft-max", "-devd", "-ngld"],
    ),
    (
        "there is no other device: experts are computed by the CPU anyway",
        &["-cmoe", "--cpu-moe", "-ncmoe", "--n-cpu-moe"],
    ),
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
}
