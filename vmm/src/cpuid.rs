//! CPUID leaves (placeholder until the table lands).
/// One leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// EAX on input.
    pub leaf: u32,
    /// ECX on input.
    pub subleaf: u32,
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
    /// Whether ECX on input matters.
    pub significant_subleaf: bool,
}
/// Every leaf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpuid(pub Vec<Leaf>);
