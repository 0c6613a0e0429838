//! What the machine is and has, and what this process took of its memory.

/// Largest resident set of this process so far; `None` where the system has no `/proc`.
pub fn peak_resident() -> Option<u64> {
    std::fs::read_to_string("/proc/self/status").ok().and_then(|s| kib_of(&s, "VmHWM:")).map(|kib| kib * 1024)
}

/// Lets [`peak_resident`] begin again from what is resident now. False where the system cannot do that: the old peak stays, which
/// is still true of the process.
pub fn reset_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Memory that can still be taken without swapping: the system's, or what the control group leaves if that is less.
pub fn available() -> Option<u64> {
    let system =
        std::fs::read_to_string("/proc/meminfo").ok().and_then(|s| kib_of(&s, "MemAvailable:")).map(|k| k * 1024);
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max")
        .and_then(|max| Some(max.saturating_sub(number("/sys/fs/cgroup/memory.current")?)));
    match (system, group) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The processor's name; empty where the system does not tell.
pub fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|l| l.starts_with("model name"));
    line.and_then(|l| l.split_once(':')).map_or(String::new(), |(_, name)| name.trim().to_owned())
}

/// The number after `key` in text of the form of `/proc/meminfo`.
fn kib_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key))?.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Bytes with the largest binary unit that keeps the number at 1 or above: `91.52 MiB`.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.2} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(1023), "1023 B");
        assert_eq!(human(1536), "1.50 KiB");
        assert_eq!(human(3 << 30), "3.00 GiB");
    }

    #[test]
    fn meminfo_lines() {
        let text = "MemTotal:       16 kB\nMemAvailable:   12345 kB\n";
        assert_eq!(kib_of(text, "MemAvailable:"), Some(12345));
        assert_eq!(kib_of(text, "MemFree:"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_a_peak() {
        assert!(peak_resident().unwrap() > 100_000);
        // Far more than the other tests of this process have at a time.
        const MUCH: u64 = 512 << 20;
        drop(std::hint::black_box(vec![1u8; MUCH as usize]));
        assert!(peak_resident().unwrap() > MUCH);
        assert!(reset_peak());
        assert!(peak_resident().unwrap() < MUCH);
    }
}
