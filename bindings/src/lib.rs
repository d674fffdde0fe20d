//! The place of the UniFFI bindings (Kotlin, Swift, Python).
//!
//! Nothing is exported yet: the on-device library in `fleetune-core` comes first.
