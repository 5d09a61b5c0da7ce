//! The vmm-cli library.
