//! What must hold for every plan of a load, whatever the files and the memory map say.

use vm_memory::GuestMemoryMmap;
use vmm_cli::boot::{BootError, BootSource, E820Kind, Inspection, Platform, inspect, load};
use vmm_vcpu::x86_64::BootRegs;

/// Plans a load. Its ranges are disjoint, each inside RAM and clear of what is reserved; the entry is in one of them.
pub fn check(platform: &Platform<'_>, source: &BootSource<'_>) -> Result<Inspection, BootError> {
    let inspection = inspect(platform, source)?;
    for (index, range) in inspection.taken.iter().enumerate() {
        assert!(range.start < range.end, "{range:#x?} is empty");
        let next = inspection.taken.get(index + 1);
        assert!(next.is_none_or(|next| range.end <= next.start), "{range:#x?} overlaps {next:#x?}");
        let of_kind = |kind| platform.map.iter().filter(move |entry| entry.kind == kind);
        let inside =
            of_kind(E820Kind::Ram).any(|ram| ram.start <= range.start && range.end <= ram.start + ram.size);
        assert!(inside, "{range:#x?} is not RAM");
        let reserved = of_kind(E820Kind::Reserved)
            .find(|entry| entry.start < range.end && range.start < entry.start + entry.size);
        assert!(reserved.is_none(), "{range:#x?} overlaps {reserved:#x?}");
    }
    let entry = match inspection.entry {
        BootRegs::Pvh { entry, .. } | BootRegs::Multiboot { entry, .. } => u64::from(entry),
        BootRegs::Linux64 { entry, .. } => entry,
    };
    assert!(inspection.taken.iter().any(|range| range.contains(&entry)), "entry {entry:#x}");
    if let (Some(initrd), Some(image)) = (&inspection.initrd, &source.initrd) {
        assert_eq!(initrd.end - initrd.start, image.len());
        assert!(inspection.taken.contains(initrd));
    }
    Ok(inspection)
}

/// Loads into `memory`, which has the RAM of the map and nothing else; the outcome is that of the plan.
pub fn load_agrees(
    memory: &GuestMemoryMmap<()>,
    platform: &Platform<'_>,
    source: &BootSource<'_>,
    plan: &Result<Inspection, BootError>,
) {
    match (plan, load(memory, platform, source)) {
        (Ok(inspection), Ok(entry)) => assert_eq!(inspection.entry, entry),
        (Err(planned), Err(loaded)) => assert_eq!(planned.to_string(), loaded.to_string()),
        (planned, loaded) => panic!("the plan is {planned:?}, the load gives {loaded:?}"),
    }
}
