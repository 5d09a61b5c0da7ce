//! `Schema`: which statistics a file has and where their values are, parsed from its header and descriptors.

use std::mem::{offset_of, size_of};

use kvm_bindings::{
    KVM_STATS_BASE_MASK, KVM_STATS_BASE_POW2, KVM_STATS_BASE_POW10, KVM_STATS_BASE_SHIFT,
    KVM_STATS_TYPE_CUMULATIVE, KVM_STATS_TYPE_INSTANT, KVM_STATS_TYPE_LINEAR_HIST, KVM_STATS_TYPE_LOG_HIST,
    KVM_STATS_TYPE_MASK, KVM_STATS_TYPE_PEAK, KVM_STATS_TYPE_SHIFT, KVM_STATS_UNIT_BOOLEAN,
    KVM_STATS_UNIT_BYTES, KVM_STATS_UNIT_CYCLES, KVM_STATS_UNIT_MASK, KVM_STATS_UNIT_NONE,
    KVM_STATS_UNIT_SECONDS, KVM_STATS_UNIT_SHIFT, kvm_stats_desc, kvm_stats_header,
};

use super::descriptor::{Base, Kind, Statistic, Unit};

/// Most statistics of one file; Linux 6.18 has 45 of a vCPU.
const MAX_STATISTICS: u32 = 4096;
/// Longest name in bytes, its closing NUL included; Linux has 48.
const MAX_NAME: u32 = 256;
/// Most values of all statistics together, and as many words of the data block; Linux 6.18 has 138 of a vCPU.
const MAX_VALUES: usize = 1 << 16;

/// Bytes of a value.
const VALUE: usize = size_of::<u64>();

/// Why the kernel's description of its statistics is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// More statistics, or longer names, than a kernel can have in earnest.
    #[error("{count} statistics with names of {name_size} bytes: more than {MAX_STATISTICS} and {MAX_NAME}")]
    TooMany {
        /// The number of statistics.
        count: u32,
        /// Bytes of a name.
        name_size: u32,
    },
    /// A name is empty, or has characters that are not printable ASCII.
    #[error("the name of statistic {index} is empty or not printable")]
    Name {
        /// Its position among the descriptors.
        index: usize,
    },
    /// The values end beyond what is read.
    #[error("{name}: {count} values from byte {offset} on end beyond word {MAX_VALUES}")]
    Place {
        /// The statistic.
        name: Box<str>,
        /// The number of its values.
        count: u16,
        /// Where they begin in the data block.
        offset: u32,
    },
    /// The statistics have more values together than are read.
    #[error("more than {MAX_VALUES} values")]
    TooManyValues,
}

/// Where the parts of a file of statistics are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    name_size: usize,
    count: usize,
    descriptors: u32,
    data: u32,
}

impl Header {
    /// Bytes of the header, from the beginning of the file.
    pub(super) const LENGTH: usize = size_of::<kvm_stats_header>();

    /// Takes the header apart. Its flags are not looked at: none is defined.
    pub(super) fn parse(bytes: &[u8; Self::LENGTH]) -> Result<Self, SchemaError> {
        let count = u32_at(bytes, offset_of!(kvm_stats_header, num_desc));
        let name_size = u32_at(bytes, offset_of!(kvm_stats_header, name_size));
        if count > MAX_STATISTICS || name_size > MAX_NAME {
            return Err(SchemaError::TooMany { count, name_size });
        }
        Ok(Self {
            name_size: name_size as usize,
            count: count as usize,
            descriptors: u32_at(bytes, offset_of!(kvm_stats_header, desc_offset)),
            data: u32_at(bytes, offset_of!(kvm_stats_header, data_offset)),
        })
    }

    /// Where the descriptors begin in the file.
    pub(super) fn descriptors_offset(&self) -> u64 {
        self.descriptors.into()
    }

    /// Their length in bytes.
    pub(super) fn descriptors_length(&self) -> usize {
        self.count * self.descriptor_length()
    }

    fn descriptor_length(&self) -> usize {
        size_of::<kvm_stats_desc>() + self.name_size
    }
}

/// The statistics of a file. All vCPUs of a kernel have the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    statistics: Box<[Statistic]>,
    data_offset: u64,
    data_length: usize,
}

impl Schema {
    /// Takes the descriptors apart, of which `bytes` has as many as `header` says.
    pub(super) fn parse(header: &Header, bytes: &[u8]) -> Result<Self, SchemaError> {
        let (mut values, mut data_length) = (0, 0);
        let descriptors = bytes.chunks_exact(header.descriptor_length()).take(header.count);
        let statistics = descriptors.enumerate().map(|(index, bytes)| {
            let statistic = parse_descriptor(index, bytes, values)?;
            values = statistic.values.end;
            data_length = data_length.max(statistic.bytes.end);
            if values > MAX_VALUES { Err(SchemaError::TooManyValues) } else { Ok(statistic) }
        });
        let statistics = statistics.collect::<Result<_, _>>()?;
        Ok(Self { statistics, data_offset: header.data.into(), data_length })
    }

    /// The statistics, in the kernel's order.
    #[must_use]
    pub fn statistics(&self) -> &[Statistic] {
        &self.statistics
    }

    /// Where the values begin in the file.
    pub(super) fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// Length in bytes of what holds them all.
    pub(super) fn data_length(&self) -> usize {
        self.data_length
    }

    /// The values in the order of the statistics, from a data block of [`data_length`](Self::data_length) bytes.
    pub(super) fn values(&self, data: &[u8]) -> Box<[u64]> {
        let words = self.statistics.iter().flat_map(|statistic| {
            let bytes = data.get(statistic.bytes.clone()).unwrap_or_default();
            bytes.as_chunks::<VALUE>().0
        });
        words.map(|word| u64::from_ne_bytes(*word)).collect()
    }
}

/// One descriptor with its name; `first` is the place of its first value in a sample.
fn parse_descriptor(index: usize, bytes: &[u8], first: usize) -> Result<Statistic, SchemaError> {
    let name = bytes.get(size_of::<kvm_stats_desc>()..).unwrap_or_default();
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = str::from_utf8(name).ok().filter(|name| is_printable(name));
    let name: Box<str> = name.ok_or(SchemaError::Name { index })?.into();
    let flags = u32_at(bytes, offset_of!(kvm_stats_desc, flags));
    let offset = u32_at(bytes, offset_of!(kvm_stats_desc, offset));
    let bucket_size = u32_at(bytes, offset_of!(kvm_stats_desc, bucket_size));
    let count = u16_at(bytes, offset_of!(kvm_stats_desc, size));
    let start = offset as usize;
    let end = start.saturating_add(usize::from(count) * VALUE);
    if end > MAX_VALUES * VALUE {
        return Err(SchemaError::Place { name, count, offset });
    }
    Ok(Statistic {
        name,
        kind: kind(flags, bucket_size),
        unit: unit(flags),
        base: base(flags),
        exponent: u16_at(bytes, offset_of!(kvm_stats_desc, exponent)).cast_signed(),
        bytes: start..end,
        values: first..first + usize::from(count),
    })
}

fn is_printable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic())
}

fn kind(flags: u32, bucket_size: u32) -> Kind {
    match flags & KVM_STATS_TYPE_MASK {
        KVM_STATS_TYPE_CUMULATIVE => Kind::Cumulative,
        KVM_STATS_TYPE_INSTANT => Kind::Instant,
        KVM_STATS_TYPE_PEAK => Kind::Peak,
        KVM_STATS_TYPE_LINEAR_HIST => Kind::LinearHistogram { bucket_size },
        KVM_STATS_TYPE_LOG_HIST => Kind::LogHistogram,
        other => Kind::Unknown((other >> KVM_STATS_TYPE_SHIFT) as u8),
    }
}

fn unit(flags: u32) -> Unit {
    match flags & KVM_STATS_UNIT_MASK {
        KVM_STATS_UNIT_NONE => Unit::Count,
        KVM_STATS_UNIT_BYTES => Unit::Bytes,
        KVM_STATS_UNIT_SECONDS => Unit::Seconds,
        KVM_STATS_UNIT_CYCLES => Unit::Cycles,
        KVM_STATS_UNIT_BOOLEAN => Unit::Boolean,
        other => Unit::Unknown((other >> KVM_STATS_UNIT_SHIFT) as u8),
    }
}

fn base(flags: u32) -> Base {
    match flags & KVM_STATS_BASE_MASK {
        KVM_STATS_BASE_POW10 => Base::Ten,
        KVM_STATS_BASE_POW2 => Base::Two,
        other => Base::Unknown((other >> KVM_STATS_BASE_SHIFT) as u8),
    }
}

/// The number at `offset`, or 0 beyond the end of `bytes`.
fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..).and_then(<[u8]>::first_chunk).copied().map_or(0, u32::from_ne_bytes)
}

/// As [`u32_at`].
fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    bytes.get(offset..).and_then(<[u8]>::first_chunk).copied().map_or(0, u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::blob::{Blob, Described};
    use super::*;

    fn parse(blob: &[u8]) -> Result<Schema, SchemaError> {
        let header = Header::parse(blob.first_chunk().unwrap())?;
        let start = header.descriptors_offset() as usize;
        Schema::parse(&header, &blob[start..start + header.descriptors_length()])
    }

    fn parse_one(described: Described) -> Result<Statistic, SchemaError> {
        Ok(parse(&Blob::default().with(described).bytes())?.statistics[0].clone())
    }

    #[test]
    fn name_kind_unit_and_scale_are_kept() {
        let flags = KVM_STATS_TYPE_LOG_HIST | KVM_STATS_UNIT_SECONDS | KVM_STATS_BASE_POW10;
        let described =
            Described { name: "halt_wait_hist", flags, exponent: -9, values: vec![0; 32], bucket: 0 };
        let read = parse_one(described).unwrap();
        assert_eq!(
            (&*read.name, read.kind, read.unit, read.base, read.exponent),
            ("halt_wait_hist", Kind::LogHistogram, Unit::Seconds, Base::Ten, -9)
        );
        let flags = KVM_STATS_TYPE_LINEAR_HIST | KVM_STATS_UNIT_BYTES | KVM_STATS_BASE_POW2;
        let described = Described { name: "sizes", flags, exponent: 10, values: vec![0; 4], bucket: 64 };
        let read = parse_one(described).unwrap();
        assert_eq!(
            (read.kind, read.unit, read.base, read.exponent),
            (Kind::LinearHistogram { bucket_size: 64 }, Unit::Bytes, Base::Two, 10)
        );
    }

    #[test]
    fn kinds_units_and_bases_of_a_newer_kernel_keep_their_numbers() {
        let described = Described { name: "new", flags: 0xfff, ..Described::default() };
        let read = parse_one(described).unwrap();
        assert_eq!(
            (read.kind, read.unit, read.base),
            (Kind::Unknown(15), Unit::Unknown(15), Base::Unknown(15))
        );
    }

    #[test]
    fn values_come_in_the_order_of_the_descriptors_wherever_they_are() {
        let blob = Blob::default().count("a", 1).count("b", 2).reversed();
        let schema = parse(&blob.bytes()).unwrap();
        let data = &blob.bytes()[schema.data_offset() as usize..];
        assert_eq!(*schema.values(&data[..schema.data_length()]), [1, 2]);
    }

    #[test]
    fn more_than_a_kernel_has_is_refused() {
        let mut blob = Blob::default().count("a", 1).bytes();
        let count = offset_of!(kvm_stats_header, num_desc);
        blob[count..count + 4].copy_from_slice(&(MAX_STATISTICS + 1).to_ne_bytes());
        assert_eq!(
            parse(&blob),
            Err(SchemaError::TooMany { count: MAX_STATISTICS + 1, name_size: Blob::NAME_SIZE })
        );
        let many = vec![0; usize::from(u16::MAX)];
        let described = || Described { name: "a", values: many.clone(), ..Described::default() };
        let one = Blob::default().with(described()).overlapping();
        assert!(parse(&one.bytes()).is_ok());
        let two = Blob::default().with(described()).with(described()).overlapping();
        assert_eq!(parse(&two.bytes()), Err(SchemaError::TooManyValues));
    }

    #[test]
    fn values_beyond_the_data_block_are_refused_with_their_name() {
        let mut blob = Blob::default().count("far", 1).bytes();
        let start = parse(&blob).map(|_| u32_at(&blob, offset_of!(kvm_stats_header, desc_offset))).unwrap();
        let offset = start as usize + offset_of!(kvm_stats_desc, offset);
        blob[offset..offset + 4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(parse(&blob), Err(SchemaError::Place { name: "far".into(), count: 1, offset: u32::MAX }));
    }

    #[test]
    fn a_name_that_a_terminal_would_obey_is_refused() {
        for name in ["", "a\u{1b}[31m", "a b", "größe"] {
            assert_eq!(
                parse_one(Described { name, ..Described::default() }),
                Err(SchemaError::Name { index: 0 }),
                "{name:?}"
            );
        }
    }

    /// The bytes of a descriptor with a name of four, which is nearly right.
    fn descriptor() -> impl Strategy<Value = Vec<u8>> {
        let size = prop_oneof![3 => 0_u16..40, 1 => any::<u16>()];
        let offset = prop_oneof![9 => 0_u32..4096, 1 => any::<u32>()];
        let name = prop_oneof![19 => "[a-z_]{1,4}".prop_map(String::into_bytes), 1 => any::<[u8; 4]>().prop_map(Vec::from)];
        let fields = (any::<u32>(), any::<i16>(), size, offset, any::<u32>(), name);
        fields.prop_map(|(flags, exponent, size, offset, bucket_size, mut name)| {
            name.resize(4, 0);
            let (flags, bucket_size) = (flags.to_ne_bytes(), bucket_size.to_ne_bytes());
            let (exponent, size, offset) = (exponent.to_ne_bytes(), size.to_ne_bytes(), offset.to_ne_bytes());
            [&flags[..], &exponent, &size, &offset, &bucket_size, &name].concat()
        })
    }

    proptest! {
        #[test]
        fn no_header_asks_for_more_than_the_limits(bytes in any::<[u8; Header::LENGTH]>(), count in 0_u32..5000) {
            let mut plausible = bytes;
            let at = |offset: usize| offset..offset + 4;
            plausible[at(offset_of!(kvm_stats_header, num_desc))].copy_from_slice(&count.to_ne_bytes());
            plausible[at(offset_of!(kvm_stats_header, name_size))].copy_from_slice(&(count / 16).to_ne_bytes());
            for bytes in [bytes, plausible] {
                if let Ok(header) = Header::parse(&bytes) {
                    prop_assert!(header.descriptors_length() <= 4096 * (256 + 16));
                }
            }
        }

        #[test]
        fn no_descriptors_panic_and_no_sample_is_larger_than_the_limits(
            descriptors in prop::collection::vec(descriptor(), 0..20),
            missing in 0_usize..30,
        ) {
            let header = Header { name_size: 4, count: descriptors.len(), descriptors: 0, data: 0 };
            let bytes = descriptors.concat();
            let Ok(schema) = Schema::parse(&header, &bytes[..bytes.len().saturating_sub(missing)]) else {
                return Ok(());
            };
            prop_assert!(schema.data_length() <= MAX_VALUES * VALUE);
            let values = schema.values(&vec![0; schema.data_length()]);
            let described: usize = schema.statistics.iter().map(|statistic| statistic.values.len()).sum();
            prop_assert_eq!(values.len(), described);
            prop_assert!(values.len() <= MAX_VALUES);
            for statistic in &*schema.statistics {
                for index in 0..70 {
                    let _ = statistic.bucket_end(index);
                }
            }
        }
    }
}
