//! `Shape`: a guest of the boot benchmark, and what is measured of its boot.

use crate::bench::boot_monitor::Format;
use crate::bench::series::Case;

/// A guest and what is measured of its boot.
#[derive(Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its name on the command line, with which those of its cases begin.
    pub name: &'static str,
    /// The kernel's form.
    pub format: Format,
    /// CPUs.
    pub cpus: u32,
    /// From the start of the process to the first entry of the guest.
    pub first_entry: Case,
    /// From there to its first program.
    pub init: Case,
    /// Exits to user space.
    pub user_exits: Case,
    /// All exits.
    pub kvm_exits: Case,
}

/// None has this name.
#[derive(Debug, thiserror::Error)]
#[error("no shape {0:?}: expected one of bzimage_1, bzimage_4, vmlinux_1, vmlinux_4")]
pub struct UnknownShape(String);

macro_rules! shape {
    ($file:literal, $format:ident, $cpus:literal) => {
        Shape {
            name: concat!($file, "_", $cpus),
            format: Format::$format,
            cpus: $cpus,
            first_entry: Case { name: concat!($file, "_", $cpus, "_first_entry"), unit: "ms" },
            init: Case { name: concat!($file, "_", $cpus, "_init"), unit: "ms" },
            user_exits: Case { name: concat!($file, "_", $cpus, "_user_exits"), unit: "exits" },
            kvm_exits: Case { name: concat!($file, "_", $cpus, "_kvm_exits"), unit: "exits" },
        }
    };
}

/// All of them.
pub static SHAPES: [Shape; 4] = [
    shape!("bzimage", BzImage, 1),
    shape!("bzimage", BzImage, 4),
    shape!("vmlinux", Vmlinux, 1),
    shape!("vmlinux", Vmlinux, 4),
];

impl Shape {
    /// The one of this name.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn named(name: &str) -> Result<&'static Self, UnknownShape> {
        SHAPES.iter().find(|shape| shape.name == name).ok_or_else(|| UnknownShape(name.to_owned()))
    }

    /// What is counted.
    pub fn counted(&self) -> [Case; 2] {
        [self.user_exits, self.kvm_exits]
    }

    /// What is timed and what is counted.
    pub fn cases(&self) -> [Case; 4] {
        [self.first_entry, self.init, self.user_exits, self.kvm_exits]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_found_by_its_name_and_named_where_there_is_no_such() {
        let error = Shape::named("zimage_1").unwrap_err().to_string();
        for shape in &SHAPES {
            assert_eq!(Shape::named(shape.name).unwrap(), shape);
            assert!(error.contains(shape.name), "{error}");
        }
    }
}
