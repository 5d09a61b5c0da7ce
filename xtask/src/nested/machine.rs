//! Machine: the emulated computer that the nested host runs on, as a command line of QEMU.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use clap::Args;

use super::qemu::Qemu;
use super::streams::Port;

/// The emulated XSETBV is not intercepted, so KVM and a guest would disagree about XCR0. Five levels of page tables
/// only cost time, and so do strings of bytes: told that they are fast (ERMS, FSRM), a kernel clears and copies pages byte by byte,
/// each of which is a turn of the emulator's loop, eight times as many as without.
const CPU: &str = "max,xsave=off,la57=off,erms=off,fsrm=off";

/// What the nested host has.
#[derive(Args, Clone, Debug)]
pub struct MachineArgs {
    /// CPUs.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=255))]
    pub cpus: u32,
    /// Memory, in MiB (4096, 4096M) or GiB (4G).
    #[arg(long, default_value = "4G", value_parser = mebibytes)]
    pub memory: u64,
    /// Huge pages set aside when it starts: 2M=COUNT or 1G=COUNT, any number of times.
    #[arg(long, value_name = "SIZE=COUNT", value_parser = huge_pages)]
    pub huge_pages: Vec<HugePages>,
    /// NUMA nodes, among which CPUs and memory are divided.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub numa: u32,
    /// A file system ext4 of this size, in memory, at /mnt.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub ext4: Option<u64>,
    /// A word more on its kernel's command line, any number of times.
    #[arg(long = "append", value_name = "WORD")]
    pub words: Vec<String>,
}

/// Pages of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HugePages {
    size: &'static str,
    count: u64,
}

fn mebibytes(text: &str) -> Result<u64, String> {
    size(text).ok().filter(|size| *size >= 512).ok_or_else(|| "expected a size of at least 512M".into())
}

/// Mebibytes, from MiB (64, 64M) or GiB (4G).
fn size(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.as_bytes() {
        [.., b'G'] => (&text[..text.len() - 1], 1024),
        [.., b'M'] => (&text[..text.len() - 1], 1),
        _ => (text, 1),
    };
    let size = digits.parse::<u64>().ok().and_then(|size| size.checked_mul(factor));
    size.filter(|size| *size > 0).ok_or_else(|| "expected a size such as 64M".into())
}

fn huge_pages(text: &str) -> Result<HugePages, String> {
    let (size, count) = text.split_once('=').ok_or("expected SIZE=COUNT")?;
    let size = ["2M", "1G"].into_iter().find(|known| *known == size).ok_or("the size is 2M or 1G")?;
    let count = count.parse().map_err(|error| format!("{count}: {error}"))?;
    Ok(HugePages { size, count })
}

/// The files a machine is started with.
pub struct Images<'a> {
    pub kernel: &'a Path,
    pub initrd: &'a Path,
    /// Where the kernel's console is written.
    pub console: &'a Path,
}

impl MachineArgs {
    /// The command that becomes the machine. It ends with the thread that starts it, however that ends.
    ///
    /// # Errors
    ///
    /// CPUs or memory cannot be divided among the nodes.
    pub fn command(&self, qemu: &Qemu, images: &Images<'_>, ports: &[&Port]) -> Result<Command> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(qemu.words());
        command.args(["-accel", "tcg,thread=multi", "-M", "q35", "-cpu", CPU]);
        command.args(["-smp", &self.cpus.to_string(), "-m", &format!("{}M", self.memory)]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(self.nodes()?);
        command.arg("-kernel").arg(images.kernel).arg("-initrd").arg(images.initrd);
        command.args(["-append", &self.kernel_command_line()]);
        command.args(["-serial", &format!("file:{}", images.console.display())]);
        command.args(["-device", "virtio-serial-pci"]);
        for (number, port) in (1..).zip(ports) {
            let Port { name, address, .. } = port;
            command.args(["-chardev", &format!("socket,id={name},path={address},abstract=on")]);
            command.args(["-device", &format!("virtserialport,nr={number},chardev={name},name={name}")]);
        }
        Ok(command)
    }

    /// A panic or an oops ends the machine. What only costs time under emulation is left out.
    fn kernel_command_line(&self) -> String {
        let mut line = "console=ttyS0 quiet panic=-1 oops=panic tsc=reliable random.trust_cpu=on nokaslr \
                        mitigations=off"
            .to_owned();
        for HugePages { size, count } in &self.huge_pages {
            line += &format!(" hugepagesz={size} hugepages={count}");
        }
        if let Some(mebibytes) = self.ext4 {
            // Read by the first program; the kernel ignores a word with a dot that it does not know.
            line += &format!(" nested.ext4={mebibytes}");
        }
        for word in &self.words {
            line += &format!(" {word}");
        }
        line
    }

    fn nodes(&self) -> Result<Vec<String>> {
        let (nodes, cpus) = (self.numa, self.cpus);
        if nodes == 1 {
            return Ok(Vec::new());
        }
        ensure!(
            cpus.is_multiple_of(nodes) && self.memory.is_multiple_of(nodes.into()),
            "{cpus} CPUs and {} MiB cannot be divided among {nodes} nodes",
            self.memory
        );
        let mut words = Vec::new();
        for node in 0..nodes {
            let size = self.memory / u64::from(nodes);
            let (first, last) = (node * cpus / nodes, (node + 1) * cpus / nodes - 1);
            words.extend(["-object".into(), format!("memory-backend-ram,id=node{node},size={size}M")]);
            words.extend([
                "-numa".into(),
                format!("node,nodeid={node},cpus={first}-{last},memdev=node{node}"),
            ]);
        }
        Ok(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(cpus: u32, numa: u32) -> MachineArgs {
        MachineArgs { cpus, memory: 4096, huge_pages: Vec::new(), numa, ext4: None, words: Vec::new() }
    }

    #[test]
    fn sizes_and_pages_are_read_and_anything_else_is_refused() {
        assert_eq!((mebibytes("4G"), mebibytes("600M"), mebibytes("600")), (Ok(4096), Ok(600), Ok(600)));
        for wrong in ["", "G", "4T", "-1", "100M", "18446744073709551615G"] {
            assert!(mebibytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(huge_pages("1G=2"), Ok(HugePages { size: "1G", count: 2 }));
        for wrong in ["1G", "4M=1", "2M=", "2M=-1"] {
            assert!(huge_pages(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn huge_pages_are_asked_for_size_by_size() {
        let pages = vec![huge_pages("1G=1").unwrap(), huge_pages("2M=8").unwrap()];
        let line = MachineArgs { huge_pages: pages, ..machine(2, 1) }.kernel_command_line();
        assert!(line.ends_with(" hugepagesz=1G hugepages=1 hugepagesz=2M hugepages=8"), "{line}");
    }

    #[test]
    fn a_file_system_is_asked_for_in_mebibytes() {
        let line = MachineArgs { ext4: Some(size("1G").unwrap()), ..machine(2, 1) }.kernel_command_line();
        assert!(line.ends_with(" nested.ext4=1024"), "{line}");
        assert_eq!((size("64M"), size("64")), (Ok(64), Ok(64)));
        assert!(size("0").is_err() && size("64K").is_err());
    }

    #[test]
    fn words_come_last_on_the_command_line() {
        let words = vec!["debug".to_owned(), "init_on_free=1".to_owned()];
        let line = MachineArgs { words, ..machine(2, 1) }.kernel_command_line();
        assert!(line.ends_with(" debug init_on_free=1"), "{line}");
    }

    #[test]
    fn nodes_share_cpus_and_memory_evenly_or_are_refused() {
        assert!(machine(3, 1).nodes().unwrap().is_empty());
        let words = machine(4, 2).nodes().unwrap();
        assert_eq!(words[1], "memory-backend-ram,id=node0,size=2048M");
        assert_eq!(words[7], "node,nodeid=1,cpus=2-3,memdev=node1");
        assert!(machine(3, 2).nodes().is_err());
    }
}
