//! KVM's trace events: when a guest was first entered, and how often what has happened.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount, umount};

const TRACEFS: &str = "/sys/kernel/tracing";

/// Switches the entries off at the first exit, so that the others cost next to nothing. At the first entry it would be
/// too early: a trigger acts before its event is recorded.
const ONE_SHOT: &str = "disable_event:kvm:kvm_entry:1";
const ONE_SHOT_FILE: &str = "events/kvm/kvm_exit/trigger";

/// A trace buffer and triggers of its own, so that those of others stay as they are. Gone on drop.
///
/// It sees the guests of every process of the host: one at a time can be watched.
#[derive(Debug)]
pub struct KvmTrace {
    instance: PathBuf,
    // Behind the instance, which is in it.
    _tracefs: Tracefs,
}

/// The mounted file system.
#[derive(Debug)]
struct Tracefs {
    is_ours: bool,
}

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// A file of tracefs cannot be used.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the call.
        source: io::Error,
    },
    /// The file system is not mounted and cannot be.
    #[error("{TRACEFS} cannot be mounted: {0}")]
    Mount(nix::Error),
    /// A file of tracefs has something else in it than expected.
    #[error("cannot be read: {0:?}")]
    Format(String),
    /// A histogram is full.
    #[error("the histogram of {0} has dropped events")]
    Dropped(&'static str),
    /// A guest of somebody else runs, and would be counted with ours.
    #[error("another guest runs on this host")]
    NotAlone,
}

/// An event of KVM whose hits are counted by the values of some of its fields.
#[derive(Debug, Clone, Copy)]
pub struct Histogram {
    /// The event's name.
    pub event: &'static str,
    /// The fields.
    pub keys: &'static [&'static str],
}

/// How often an event had these values of its keys, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hits {
    /// The values.
    pub keys: Vec<u64>,
    /// How often.
    pub count: u64,
}

impl KvmTrace {
    /// Makes an instance of tracefs, which is mounted as long if it is not. That takes root.
    ///
    /// # Errors
    ///
    /// The kernel or the user lacks what it takes, or a guest runs already.
    pub fn open() -> Result<Self, TraceError> {
        let tracefs = Tracefs::mounted()?;
        let instance = PathBuf::from(format!("{TRACEFS}/instances/vmm-bench-{}", process::id()));
        fs::create_dir(&instance).map_err(|source| TraceError::File { path: instance.clone(), source })?;
        let trace = Self { instance, _tracefs: tracefs };
        trace.write("trace_clock", "mono")?;
        if trace.sees_guest()? {
            return Err(TraceError::NotAlone);
        }
        Ok(trace)
    }

    /// Whether a guest is entered within a second; one that runs is, at least for its timer.
    fn sees_guest(&self) -> Result<bool, TraceError> {
        let entries = Histogram { event: "kvm_entry", keys: &["vcpu_id"] };
        self.count(entries)?;
        thread::sleep(Duration::from_secs(1));
        Ok(!self.counted(entries)?.is_empty())
    }

    /// From here on the first entry of a guest is recorded.
    ///
    /// # Errors
    ///
    /// A file of tracefs cannot be used.
    pub fn watch_first_entry(&self) -> Result<(), TraceError> {
        self.write("events/kvm/kvm_entry/enable", "0")?;
        // Of a boot that has failed before anybody asked. Where there is none, that is an error.
        let _ = self.write(ONE_SHOT_FILE, &format!("!{ONE_SHOT}"));
        self.write("trace", "")?;
        self.write(ONE_SHOT_FILE, ONE_SHOT)?;
        self.write("events/kvm/kvm_entry/enable", "1")
    }

    /// When the first guest was entered since the call of [`Self::watch_first_entry`], by the monotonic clock; it
    /// takes another such call for another.
    ///
    /// # Errors
    ///
    /// A file of tracefs cannot be used or read, or no guest was entered.
    pub fn first_entry(&self) -> Result<Duration, TraceError> {
        self.write("events/kvm/kvm_entry/enable", "0")?;
        self.write(ONE_SHOT_FILE, &format!("!{ONE_SHOT}"))?;
        let text = self.read("trace")?;
        first_time(&text).ok_or_else(|| TraceError::Format(last_line(&text)))
    }

    /// From here on the events of `histogram` are counted, from 0.
    ///
    /// # Errors
    ///
    /// A file of tracefs cannot be used.
    pub fn count(&self, histogram: Histogram) -> Result<(), TraceError> {
        // The file is truncated by the write, which removes the histogram that was there.
        self.write(&format!("events/kvm/{}/trigger", histogram.event), &histogram.trigger())
    }

    /// What was counted, the most frequent first.
    ///
    /// # Errors
    ///
    /// A file of tracefs cannot be used or read, or there were too many different values.
    pub fn counted(&self, histogram: Histogram) -> Result<Vec<Hits>, TraceError> {
        let text = self.read(&format!("events/kvm/{}/hist", histogram.event))?;
        self.write(&format!("events/kvm/{}/trigger", histogram.event), &format!("!{}", histogram.trigger()))?;
        if !text.lines().any(|line| line.trim() == "Dropped: 0") {
            return Err(TraceError::Dropped(histogram.event));
        }
        let lines = text.lines().filter(|line| line.starts_with('{'));
        let hits: Result<Vec<_>, _> =
            lines.map(|line| hits(line).ok_or_else(|| TraceError::Format(line.to_owned()))).collect();
        hits.map(|mut hits| {
            hits.sort_by(|one, other| other.count.cmp(&one.count).then_with(|| one.keys.cmp(&other.keys)));
            hits
        })
    }

    fn write(&self, file: &str, text: &str) -> Result<(), TraceError> {
        let path = self.instance.join(file);
        fs::write(&path, text).map_err(|source| TraceError::File { path, source })
    }

    fn read(&self, file: &str) -> Result<String, TraceError> {
        let path = self.instance.join(file);
        fs::read_to_string(&path).map_err(|source| TraceError::File { path, source })
    }
}

impl Drop for KvmTrace {
    fn drop(&mut self) {
        // There is nobody to be told; what stays is an instance that nothing writes to.
        let _ = fs::remove_dir(&self.instance);
    }
}

impl Tracefs {
    /// As it is, or mounted until the drop.
    fn mounted() -> Result<Self, TraceError> {
        let is_ours = !Path::new(TRACEFS).join("events").is_dir();
        if is_ours {
            mount(Some("tracefs"), TRACEFS, Some("tracefs"), MsFlags::empty(), None::<&str>)
                .map_err(TraceError::Mount)?;
        }
        Ok(Self { is_ours })
    }
}

impl Drop for Tracefs {
    fn drop(&mut self) {
        if self.is_ours {
            // Somebody else may use it by now.
            let _ = umount(TRACEFS);
        }
    }
}

impl Histogram {
    fn trigger(self) -> String {
        let keys: Vec<_> = self.keys.iter().map(|key| format!("{key}.hex")).collect();
        format!("hist:keys={}", keys.join(","))
    }
}

/// The time of the first event in the text of a trace: `vcpu0-9  [001] d.... 12.345678: kvm_entry: vcpu 0, …`.
fn first_time(trace: &str) -> Option<Duration> {
    let event = trace.lines().find(|line| !line.starts_with('#') && line.contains(": kvm_entry: "))?;
    let (before, _) = event.split_once(": kvm_entry: ")?;
    let (seconds, microseconds) = before.split_whitespace().last()?.split_once('.')?;
    Some(Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(microseconds.parse().ok()?))
}

fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or_default().to_owned()
}

/// Reads `{ port:        3f8, rw:          1 } hitcount:        123`.
fn hits(line: &str) -> Option<Hits> {
    let (keys, count) = line.strip_prefix('{')?.split_once("} hitcount:")?;
    let value = |key: &str| u64::from_str_radix(key.split_once(':')?.1.trim(), 16).ok();
    let keys: Option<Vec<_>> = keys.split(',').map(value).collect();
    Some(Hits { keys: keys?, count: count.split_whitespace().next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_an_entry_stands_before_its_name() {
        let trace = "# tracer: nop\n#\n#  TASK-PID  CPU#  TIMESTAMP: kvm_entry: no\n  \
                     vcpu 0-123  [001] d....  12.045678: kvm_entry: vcpu 0, rip 0xfff0\n  \
                     vcpu 1-124  [000] d....  13.000000: kvm_entry: vcpu 1, rip 0xfff0\n";
        assert_eq!(first_time(trace), Some(Duration::from_micros(12_045_678)));
        assert_eq!(first_time("# tracer: nop\n#\n"), None);
    }

    #[test]
    fn a_line_of_a_histogram_has_keys_and_a_count() {
        let expected = Hits { keys: vec![0x3f8, 1], count: 123 };
        assert_eq!(hits("{ port:        3f8, rw:          1 } hitcount:        123"), Some(expected));
        let one = hits("{ reason: ffffffff } hitcount: 1  len: 4").unwrap();
        assert_eq!((one.keys, one.count), (vec![0xffff_ffff], 1));
        assert_eq!(hits("{ reason: x } hitcount: 1"), None);
        assert_eq!(hits("Totals:"), None);
    }

    #[test]
    fn all_keys_are_in_base_sixteen() {
        let histogram = Histogram { event: "kvm_pio", keys: &["port", "rw"] };
        assert_eq!(histogram.trigger(), "hist:keys=port.hex,rw.hex");
    }
}
