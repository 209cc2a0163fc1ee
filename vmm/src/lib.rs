//! A KVM virtual machine monitor whose board speaks exits.
