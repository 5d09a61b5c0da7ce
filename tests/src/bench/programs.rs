//! `Programs`: what Linux guests of benchmarks are started with, as measuring programs are told of it.

use std::path::PathBuf;

use clap::Args;

/// Monitors, and what they boot.
#[derive(Args, Clone, Debug)]
pub struct Programs {
    /// The program vmm-cli
    #[arg(long)]
    pub vmm: PathBuf,
    /// The program qemu-system-x86_64
    #[arg(long)]
    pub qemu: PathBuf,
    /// The directory of its firmware
    #[arg(long)]
    pub firmware: PathBuf,
    /// The directory of bzImage, vmlinux and initrd
    #[arg(long)]
    pub images: PathBuf,
}
