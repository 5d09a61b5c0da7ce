//! Choice: settings that are one of a few words.

use clap::ValueEnum;
use serde::de::{Deserialize, Deserializer, Error};

use super::value::ValueError;

/// What happens when the guest resets the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum OnReset {
    /// End the process with 0
    #[default]
    Exit,
    /// Start the guest again, in the same process
    Restart,
}

/// What a triple fault counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum OnTripleFault {
    /// A crash: end the process with 4 and a report
    #[default]
    Crash,
    /// A reset, as on a real machine
    Reset,
}

/// How a vCPU is interrupted that is in the guest. The mechanisms are those of `vmm_vcpu::Mechanism`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Kick {
    /// A byte on the run page and a signal
    #[default]
    ImmediateExit,
    /// A signal that is blocked outside the guest
    SignalMask,
}

/// Who emulates the interrupt controllers beside the local APICs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Irqchip {
    /// KVM: an I/O APIC and two 8259s
    #[default]
    Kernel,
    /// The monitor: an I/O APIC
    Split,
}

/// What becomes of a thread of the monitor that asks the kernel for what is not in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Seccomp {
    /// It is told, and the process ends with 5
    #[default]
    On,
    /// The kernel's log has it, and it goes on
    Log,
    /// There are no filters
    Off,
}

/// The least important messages that are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogLevel {
    /// Nothing
    Off,
    /// What ended or damaged the virtual machine
    Error,
    /// And what is wrong but survived
    #[default]
    Warn,
    /// And the steps of a run
    Info,
    /// And the decisions behind them
    Debug,
    /// And single events
    Trace,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// A line of text for each message
    #[default]
    Text,
    /// A JSON object on a line for each message
    Json,
}

/// The form of the statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StatsFormat {
    /// Columns of text, without what is 0
    Table,
    /// One JSON object
    Json,
}

/// The word for `choice`, as file and flags write it.
pub(crate) fn word<T: ValueEnum>(choice: &T) -> String {
    choice.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn parse<T: ValueEnum>(text: &str) -> Result<T, ValueError> {
    T::from_str(text, false).map_err(|_| {
        let permitted = T::value_variants().iter().map(word).collect::<Vec<_>>().join(", ");
        ValueError::NotOneOf { value: text.to_owned(), permitted }
    })
}

/// Deserializes one of the words of `T`.
pub(super) fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: ValueEnum,
{
    parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// As [`deserialize`]; a key that is present is always `Some`.
pub(crate) fn deserialize_some<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: ValueEnum,
{
    deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_word_is_read_back<T: ValueEnum + PartialEq + std::fmt::Debug>(words: &[&str]) {
        let written: Vec<String> = T::value_variants().iter().map(word).collect();
        assert_eq!(written, words);
        for choice in T::value_variants() {
            assert_eq!(parse::<T>(&word(choice)).as_ref(), Ok(choice));
        }
    }

    #[test]
    fn words_are_those_of_the_documentation() {
        every_word_is_read_back::<OnReset>(&["exit", "restart"]);
        every_word_is_read_back::<OnTripleFault>(&["crash", "reset"]);
        every_word_is_read_back::<Kick>(&["immediate-exit", "signal-mask"]);
        every_word_is_read_back::<Irqchip>(&["kernel", "split"]);
        every_word_is_read_back::<LogLevel>(&["off", "error", "warn", "info", "debug", "trace"]);
        every_word_is_read_back::<LogFormat>(&["text", "json"]);
        every_word_is_read_back::<StatsFormat>(&["table", "json"]);
    }

    #[test]
    fn any_other_word_lists_the_permitted_ones() {
        for text in ["reboot", "Exit", "exit ", ""] {
            let error = parse::<OnReset>(text).unwrap_err().to_string();
            assert!(error.ends_with(" is not one of exit, restart"), "{error}");
        }
    }
}
