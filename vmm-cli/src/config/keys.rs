//! Key table: every setting's key, flag and TOML type, and the nearest key to an unknown one.

use std::fmt;

use toml::de::DeValue;

use super::value::{EXPECTED_CMDLINE, EXPECTED_CPUS, EXPECTED_PATH, EXPECTED_SWITCH};
use super::{
    affinity, balloon, cpu, disk, duration, fs, memory, memory_hotplug, net, scheduler, serial, size, stats,
    vsock,
};

/// Longest unknown key, in characters, that is compared with the known ones.
const LONGEST_COMPARED: usize = 32;

/// One table of the file.
#[derive(Debug)]
pub(super) struct Section {
    pub name: &'static str,
    pub keys: &'static [Key],
}

/// One setting.
#[derive(Debug)]
pub(super) struct Key {
    pub name: &'static str,
    pub flag: &'static str,
    pub form: Form,
    /// What a value must look like, as the end of "expected …".
    pub expected: &'static str,
}

/// The TOML types a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Integer,
    TextOrInteger,
    /// An array of strings.
    Words,
    TextOrWords,
    Switch,
}

pub(super) const SECTIONS: &[Section] = &[
    Section {
        name: "boot",
        keys: &[
            key("kernel", "--kernel", Form::Text, EXPECTED_PATH),
            key("initrd", "--initrd", Form::Text, EXPECTED_PATH),
            key("cmdline", "--cmdline", Form::Text, EXPECTED_CMDLINE),
        ],
    },
    Section {
        name: "cpu",
        keys: &[
            key("count", "--cpus", Form::Integer, EXPECTED_CPUS),
            key("kick", "--kick", Form::Text, "\"immediate-exit\" or \"signal-mask\""),
            key("affinity", "--affinity", Form::TextOrWords, affinity::EXPECTED),
            key("dedicated", "--dedicated", Form::Switch, EXPECTED_SWITCH),
            key("disable_exits", "--disable-exits", Form::Words, cpu::EXPECTED_EXITS),
            key("halt_poll_ns", "--halt-poll-ns", Form::Integer, cpu::EXPECTED_NANOSECONDS),
            key("realtime_hint", "--realtime-hint", Form::Switch, EXPECTED_SWITCH),
            key("scheduler", "--scheduler", Form::Text, scheduler::EXPECTED),
            key("monopolize_cpus", "--monopolize-cpus", Form::Switch, EXPECTED_SWITCH),
        ],
    },
    Section {
        name: "memory",
        keys: &[
            key("size", "--memory", Form::TextOrInteger, size::EXPECTED),
            key("backing", "--memory-backing", Form::Text, memory::EXPECTED_BACKING),
            key("huge_pages", "--huge-pages", Form::Text, memory::EXPECTED_HUGE_PAGES),
            key("prefault", "--prefault", Form::Switch, EXPECTED_SWITCH),
            key("lock", "--lock-memory", Form::Switch, EXPECTED_SWITCH),
            key("dump", "--dump-memory", Form::Switch, EXPECTED_SWITCH),
            key("dirty_log", "--dirty-log", Form::Text, memory::EXPECTED_DIRTY_LOG),
        ],
    },
    memory_hotplug::SECTION,
    Section {
        name: "machine",
        keys: &[
            key("on_reset", "--on-reset", Form::Text, "\"exit\" or \"restart\""),
            key("on_triple_fault", "--on-triple-fault", Form::Text, "\"crash\" or \"reset\""),
            key("grace_time", "--grace-time", Form::Text, duration::EXPECTED),
            key("irqchip", "--irqchip", Form::Text, "\"kernel\" or \"split\""),
            key("pit", "--pit", Form::Switch, EXPECTED_SWITCH),
            key("pci", "--pci", Form::Switch, EXPECTED_SWITCH),
            key("selftest", "--selftest", Form::Switch, EXPECTED_SWITCH),
        ],
    },
    Section { name: "entropy", keys: &[key("device", "--entropy", Form::Switch, EXPECTED_SWITCH)] },
    Section {
        name: "console",
        keys: &[
            key("serial", "--serial", Form::Text, serial::EXPECTED),
            key("virtio", "--virtio-console", Form::Text, serial::EXPECTED),
        ],
    },
    vsock::SECTION,
    balloon::SECTION,
    Section { name: "control", keys: &[key("socket", "--api-sock", Form::Text, EXPECTED_PATH)] },
    Section {
        name: "confinement",
        keys: &[key("seccomp", "--seccomp", Form::Text, "one of \"on\", \"log\", \"off\"")],
    },
    Section {
        name: "log",
        keys: &[
            key(
                "level",
                "--log-level",
                Form::Text,
                "one of \"off\", \"error\", \"warn\", \"info\", \"debug\", \"trace\"",
            ),
            key("format", "--log-format", Form::Text, "\"text\" or \"json\""),
            key("file", "--log-file", Form::Text, EXPECTED_PATH),
        ],
    },
    Section {
        name: "stats",
        keys: &[
            key("output", "--stats", Form::Text, stats::EXPECTED),
            key("format", "--stats-format", Form::Text, "\"table\" or \"json\""),
        ],
    },
];

pub(super) const fn key(name: &'static str, flag: &'static str, form: Form, expected: &'static str) -> Key {
    Key { name, flag, form, expected }
}

impl Form {
    pub fn takes(self, value: &DeValue<'_>) -> bool {
        match value {
            DeValue::String(_) => matches!(self, Self::Text | Self::TextOrInteger | Self::TextOrWords),
            DeValue::Integer(_) => matches!(self, Self::Integer | Self::TextOrInteger),
            DeValue::Boolean(_) => self == Self::Switch,
            DeValue::Array(items) => {
                matches!(self, Self::Words | Self::TextOrWords)
                    && items.iter().all(|item| item.get_ref().is_str())
            }
            _ => false,
        }
    }

    /// What is wrong with a value whose TOML type is right.
    pub fn misfit(self, value: &DeValue<'_>) -> Option<&'static str> {
        let takes_words = matches!(self, Self::Words | Self::TextOrWords);
        (takes_words && value.is_array()).then_some("an array of something else than strings")
    }
}

/// The tables that a file may have several of.
pub(super) const REPEATED: &[Section] = &[disk::SECTION, net::SECTION, fs::SECTION];

/// The table called `name` of which there may be several.
pub(super) fn repeated(name: &str) -> Option<&'static Section> {
    REPEATED.iter().find(|section| section.name == name)
}

/// The section called `name`.
pub(super) fn section(name: &str) -> Option<&'static Section> {
    SECTIONS.iter().find(|section| section.name == name)
}

/// `section.key (--flag)`, for messages about a setting that either may have set.
pub(super) fn with_flag(dotted: &str) -> String {
    every_key()
        .find(|(section, key)| dotted == format!("{}.{}", section.name, key.name))
        .map_or_else(|| dotted.to_owned(), |(_, key)| format!("{dotted} ({})", key.flag))
}

fn every_key() -> impl Iterator<Item = (&'static Section, &'static Key)> {
    SECTIONS.iter().chain(REPEATED).flat_map(|section| section.keys.iter().map(move |key| (section, key)))
}

/// What to tell somebody who used a key that does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// The same name is known elsewhere, or as a flag.
    Is(String),
    /// A name that differs by a few letters.
    Near(String),
    /// Nothing is near: the keys of this section.
    KeysOf(&'static str),
    /// Nothing is near: the sections.
    Sections,
}

impl Hint {
    /// The hint for the unknown `name` in `parent`, or at the top of the file.
    pub(super) fn unknown(parent: Option<&'static Section>, name: &str) -> Self {
        let sections =
            SECTIONS.iter().chain(REPEATED).filter(|_| parent.is_none()).map(|s| s.name.to_owned());
        let sections = sections.map(|section| (distance(name, &section), section));
        Self::nearest(sections.chain(keys_by_distance(parent, name)), name)
            .unwrap_or(parent.map_or(Self::Sections, |section| Self::KeysOf(section.name)))
    }

    /// The hint for a value where the table `section` belongs.
    pub(super) fn not_a_table(section: &'static Section) -> Self {
        Self::nearest(keys_by_distance(None, section.name), section.name)
            .unwrap_or(Self::KeysOf(section.name))
    }

    fn nearest(candidates: impl Iterator<Item = (usize, String)>, name: &str) -> Option<Self> {
        let length = name.chars().count();
        if length > LONGEST_COMPARED {
            return None;
        }
        let (distance, nearest) = candidates.min_by_key(|(distance, _)| *distance)?;
        match distance {
            0 => Some(Self::Is(nearest)),
            _ if distance <= (length / 3).clamp(1, 3) => Some(Self::Near(nearest)),
            _ => None,
        }
    }
}

/// Every key with its distance from `name`, those of `parent` first so that they win a tie.
fn keys_by_distance(parent: Option<&'static Section>, name: &str) -> impl Iterator<Item = (usize, String)> {
    let inside = move |section: &Section| parent.is_some_and(|parent| parent.name == section.name);
    let own = every_key().filter(move |(section, _)| inside(section));
    let other = every_key().filter(move |(section, _)| !inside(section));
    own.chain(other).map(move |(section, key)| {
        let by_flag = distance(name, key.flag.trim_start_matches('-'));
        (by_flag.min(distance(name, key.name)), format!("{}.{}", section.name, key.name))
    })
}

/// Edits between two names; case and the kind of hyphen do not count.
fn distance(a: &str, b: &str) -> usize {
    if a.chars().count() > LONGEST_COMPARED {
        return usize::MAX;
    }
    let normal = |name: &str| name.to_ascii_lowercase().replace('-', "_");
    strsim::damerau_levenshtein(&normal(a), &normal(b))
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(key) => write!(f, "the key is `{key}`"),
            Self::Near(key) => write!(f, "did you mean `{key}`?"),
            Self::KeysOf(name) => {
                let keys = section(name).or_else(|| repeated(name)).map_or(&[][..], |section| section.keys);
                let keys: Vec<&str> = keys.iter().map(|key| key.name).collect();
                write!(f, "the keys of [{name}] are: {}", keys.join(", "))
            }
            Self::Sections => {
                let names: Vec<&str> = SECTIONS.iter().chain(REPEATED).map(|section| section.name).collect();
                write!(f, "the sections are: {}", names.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU_KEYS: &str = "the keys of [cpu] are: count, kick, affinity, dedicated, disable_exits, halt_poll_ns, \
        realtime_hint, scheduler, monopolize_cpus";

    fn hint(parent: &str, name: &str) -> String {
        Hint::unknown(section(parent), name).to_string()
    }

    #[test]
    fn a_misspelt_key_finds_its_neighbour() {
        assert_eq!(hint("memory", "sise"), "did you mean `memory.size`?");
        assert_eq!(hint("boot", "kernal"), "did you mean `boot.kernel`?");
        assert_eq!(hint("machine", "on_tripple_fault"), "did you mean `machine.on_triple_fault`?");
        assert_eq!(hint("", "memroy"), "did you mean `memory`?");
    }

    #[test]
    fn a_key_of_another_section_or_a_flag_finds_its_place() {
        assert_eq!(hint("", "cpus"), "the key is `cpu.count`");
        assert_eq!(hint("cpu", "cpus"), "the key is `cpu.count`");
        assert_eq!(hint("machine", "serial"), "the key is `console.serial`");
        assert_eq!(hint("machine", "on-reset"), "the key is `machine.on_reset`");
        assert_eq!(hint("", "log-level"), "the key is `log.level`");
        assert_eq!(hint("", "Kernel"), "the key is `boot.kernel`");
    }

    #[test]
    fn a_key_near_to_nothing_lists_what_there_is() {
        assert_eq!(hint("boot", "snapshot"), "the keys of [boot] are: kernel, initrd, cmdline");
        assert_eq!(
            hint("", "quux"),
            "the sections are: boot, cpu, memory, memory_hotplug, machine, entropy, console, vsock, balloon, control, confinement, log, stats, disk, net, fs"
        );
        assert_eq!(hint("cpu", &"k".repeat(1 << 20)), CPU_KEYS);
    }

    #[test]
    fn a_value_in_the_place_of_a_section_names_the_key() {
        let hint = |name| section(name).map(|section| Hint::not_a_table(section).to_string());
        assert_eq!(hint("memory").unwrap(), "the key is `memory.size`");
        assert_eq!(hint("cpu").unwrap(), "did you mean `cpu.count`?");
        assert_eq!(hint("log").unwrap(), "the keys of [log] are: level, format, file");
    }

    #[test]
    fn a_setting_is_named_by_key_and_flag() {
        assert_eq!(with_flag("cpu.count"), "cpu.count (--cpus)");
    }
}
