//! What a node has, for those who present it: the pinned maps and links, and the kernel's own objects.

pub mod ebpf;
pub mod kernel;
