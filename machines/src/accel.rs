//! What runs a guest's instructions.

/// What QEMU runs a guest's instructions on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accel {
    /// The processor, with the kernel's help.
    Kvm,
    /// QEMU, which translates them. It works everywhere, and is ten times slower.
    Tcg,
}
