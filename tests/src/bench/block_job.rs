//! `Job`: a job of the block benchmark, and what fio says of it.

use crate::bench::series::Case;

/// A section of `tests/linux/block.fio`, with a number of queues.
#[derive(Debug, PartialEq, Eq)]
pub struct Job {
    /// The section.
    pub section: &'static str,
    /// Queues of the disk, and threads of fio.
    pub queues: u32,
    /// Requests in a second.
    pub rate: Case,
    /// From submission to completion, the mean of a round.
    pub latency: Case,
    /// Interrupts that the guest takes for a request.
    pub interrupts: Case,
    /// Calls of the host's kernel for a request, to give it over.
    pub host_calls: Case,
}

/// None has this name.
#[derive(Debug, thiserror::Error)]
#[error("no job {0:?}: expected one of {names}", names = JOBS.each_ref().map(|job| job.rate.name).join(", "))]
pub struct UnknownJob(String);

macro_rules! job {
    ($section:literal, $queues:literal) => {
        Job {
            section: $section,
            queues: $queues,
            rate: Case { name: concat!($section, "_queues_", $queues), unit: "requests/s" },
            latency: Case { name: concat!($section, "_queues_", $queues, "_latency"), unit: "us" },
            interrupts: Case {
                name: concat!($section, "_queues_", $queues, "_interrupts"),
                unit: "per request",
            },
            host_calls: Case {
                name: concat!($section, "_queues_", $queues, "_host_calls"),
                unit: "per request",
            },
        }
    };
}

/// All of them, in the order in which they are done; those of one number of queues next to each other.
pub static JOBS: [Job; 12] = [
    job!("read_4k_1", 1),
    job!("write_4k_1", 1),
    job!("read_4k_32", 1),
    job!("write_4k_32", 1),
    job!("read_128k", 1),
    job!("write_128k", 1),
    job!("read_4k_1", 2),
    job!("write_4k_1", 2),
    job!("read_4k_32", 2),
    job!("write_4k_32", 2),
    job!("read_128k", 2),
    job!("write_128k", 2),
];

impl Job {
    /// The one whose rate has this name, `SECTION_queues_QUEUES`.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn named(name: &str) -> Result<&'static Self, UnknownJob> {
        JOBS.iter().find(|job| job.rate.name == name).ok_or_else(|| UnknownJob(name.to_owned()))
    }

    /// Whatever may be measured of it.
    #[must_use]
    pub fn cases(&self) -> [Case; 4] {
        [self.rate, self.latency, self.interrupts, self.host_calls]
    }
}

/// What fio has measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Requests in a second.
    pub rate: f64,
    /// Microseconds.
    pub latency: f64,
    /// Requests.
    pub requests: f64,
}

impl Measured {
    /// Reads a line of `fio --minimal` (terse output, version 3), of a job that only reads or only writes.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        // Of reads, and of writes: KiB, bandwidth, rate, milliseconds, 4 of submission, 4 of completion, 20 percentiles, and of the
        // whole latency the least, greatest and mean.
        const READS: usize = 5;
        const WRITES: usize = 46;
        let fields: Vec<&str> = line.trim().split(';').collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
        if fields.first() != Some(&"3") || number(4) != Some(0.0) {
            return None;
        }
        let start = if number(READS)? > 0.0 { READS } else { WRITES };
        let (rate, time) = (number(start + 2)?, number(start + 3)?);
        let measured = Self { rate, latency: number(start + 34)?, requests: rate * time / 1000.0 };
        (measured.requests > 0.0).then_some(measured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(start: usize, error: &str) -> String {
        let mut fields = vec!["0"; 130];
        (fields[0], fields[4]) = ("3", error);
        (fields[start], fields[start + 2], fields[start + 3], fields[start + 34]) =
            ("800", "1000", "2000", "12.5");
        fields.join(";")
    }

    #[test]
    fn reads_and_writes_are_read_from_their_fields_and_errors_are_not_taken_for_results() {
        let expected = Measured { rate: 1000.0, latency: 12.5, requests: 2000.0 };
        assert_eq!(Measured::parse(&line(5, "0")), Some(expected));
        assert_eq!(Measured::parse(&line(46, "0")), Some(expected));
        assert_eq!(Measured::parse(&line(5, "5")), None);
        assert_eq!(Measured::parse("fio: no such file"), None);
    }

    #[test]
    fn every_job_is_found_by_its_name_and_named_where_there_is_no_such() {
        let error = Job::named("read_4k_1").unwrap_err().to_string();
        for job in &JOBS {
            assert_eq!(Job::named(job.rate.name).unwrap(), job);
            assert!(error.contains(job.rate.name), "{error}");
        }
    }

    #[test]
    fn every_job_is_a_section_of_the_file() {
        let file = include_str!("../../linux/block.fio");
        for job in &JOBS {
            assert!(file.lines().any(|line| line == format!("[{}]", job.section)), "{job:?}");
        }
    }
}
