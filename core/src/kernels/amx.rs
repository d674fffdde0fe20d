//! Whether tile registers (AMX) may be used: the processor must have them, the system must save them
//! when it switches threads, and this process must have asked for that.

use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

/// Whether products of bf16 tiles can be computed here. Asks the system for leave the first time; what
/// it grants holds for all threads of the process.
pub(super) fn has_bf16() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| processor_has_bf16() && system_saves_tiles() && allowed())
}

/// CPUID leaf 7: tiles, and their products of bf16 pairs.
fn processor_has_bf16() -> bool {
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    if __cpuid(0).eax < 7 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    features & BF16 != 0 && features & TILES != 0
}

/// Whether the system has switched on the state of tiles, their shape (17) and their data (18).
fn system_saves_tiles() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const TILE_STATE: u64 = 0b11 << 17;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    // SAFETY: `OSXSAVE` says that the instruction may be used, whose only register is the first.
    let enabled = unsafe { enabled_state() };
    enabled & TILE_STATE == TILE_STATE
}

/// What the system saves of the processor's state.
///
/// # Safety
/// The system must have allowed the instruction (`OSXSAVE`).
#[target_feature(enable = "xsave")]
unsafe fn enabled_state() -> u64 {
    // SAFETY: as promised.
    unsafe { _xgetbv(0) }
}

/// Linux gives a process the room that tiles take on a signal's stack only after it has asked.
#[cfg(target_os = "linux")]
fn allowed() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: this request takes a number and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

/// Other systems' ways of asking are not known to us from use.
#[cfg(not(target_os = "linux"))]
fn allowed() -> bool {
    false
}
