//! What the operating system knows of this process, and is told of it.

use std::io;

/// The most memory this process has held resident so far. `None` where the system does not tell.
pub fn peak_rss_bytes() -> Option<u64> {
    kib_line("/proc/self/status", "VmHWM:")
}

/// The most memory that another process has held resident so far.
pub fn peak_rss_bytes_of(process: u32) -> Option<u64> {
    kib_line(&format!("/proc/{process}/status"), "VmHWM:")
}

/// The memory that another process holds resident.
pub fn rss_bytes_of(process: u32) -> Option<u64> {
    kib_line(&format!("/proc/{process}/status"), "VmRSS:")
}

/// The processor's name, as the system gives it.
pub fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Memory that programs can take without others being swapped out. `None` where the system does not
/// tell.
pub fn available_memory_bytes() -> Option<u64> {
    kib_line("/proc/meminfo", "MemAvailable:")
}

/// Replaces this process by the same command with one heap for each core, two at least, where glibc
/// manages memory: of itself it makes eight for each core, and what many threads free lies scattered
/// over them, of no use to the others. glibc reads the number when a process starts, so it takes a
/// second start; whoever has set `MALLOC_ARENA_MAX` has decided already.
///
/// # Errors
/// When the system refuses; this process is then as it was.
pub fn limit_heaps() -> io::Result<()> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if std::env::var_os(HEAPS).is_none() {
        use std::os::unix::process::CommandExt;
        let cores = std::thread::available_parallelism()?.get();
        let mut again = std::process::Command::new(std::env::current_exe()?);
        again.args(std::env::args_os().skip(1)).env(HEAPS, cores.max(2).to_string());
        // Returns only where it fails.
        return Err(again.exec());
    }
    Ok(())
}

/// The variable by which glibc knows how many heaps to make at most.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const HEAPS: &str = "MALLOC_ARENA_MAX";

/// A line of one of Linux's files that count in KiB.
fn kib_line(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
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
