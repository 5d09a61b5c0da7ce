//! Devices that are taken apart while they are in use, and devices of which a part cannot be had: nothing is left of them.

#![cfg(test)]

mod faults;
mod held;
mod orders;
