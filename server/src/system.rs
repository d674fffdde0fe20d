//! What the operating system knows of this process.

/// The most memory this process has held resident so far. `None` where the system does not tell.
pub fn peak_rss_bytes() -> Option<u64> {
    status_bytes("self", "VmHWM:")
}

/// The most memory that another process has held resident so far.
pub fn peak_rss_bytes_of(process: u32) -> Option<u64> {
    status_bytes(&process.to_string(), "VmHWM:")
}

/// The memory that another process holds resident.
pub fn rss_bytes_of(process: u32) -> Option<u64> {
    status_bytes(&process.to_string(), "VmRSS:")
}

/// The processor's name, as the system gives it.
pub fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// A line of Linux's `/proc/PROCESS/status`, which counts in KiB.
fn status_bytes(process: &str, key: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_peak_grows_with_memory_that_was_held() {
        let before = peak_rss_bytes().unwrap();
        let block = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(peak_rss_bytes().unwrap() >= before.max(block.len() as u64));
    }
}
