//! Arguments of `jail`: what the machine has of its host.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::config::parse_bytes;

/// What the machine has of its host, and which machine it is.
#[derive(Debug, Clone, clap::Args)]
pub struct JailArgs {
    /// Run as the user with this number [default: as who starts it]; needs root
    #[arg(long, value_name = "NUMBER")]
    pub uid: Option<u32>,

    /// And in the group with this number [default: that of --uid]
    #[arg(long, value_name = "NUMBER", requires = "uid")]
    pub gid: Option<u32>,

    /// A user namespace: true or false; alone it means true [default: unless root starts it]
    #[arg(long, value_name = "BOOL", hide_possible_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub user_namespace: Option<bool>,

    /// A network namespace: true or false; alone it means true [default: unless --net names an interface]
    #[arg(long, value_name = "BOOL", hide_possible_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub network_namespace: Option<bool>,

    /// File or directory that is in the jail too, though no setting names it; may be repeated
    #[arg(long, value_name = "PATH")]
    pub allow: Vec<PathBuf>,

    /// Control group (version 2) to make, below the root of all groups, such as machines/vm1 [default: none]
    #[arg(long, value_name = "NAME")]
    pub cgroup: Option<String>,

    /// Most memory of the control group, such as 512M: guest RAM and the monitor's own [default: no limit]
    #[arg(long, value_name = "SIZE", requires = "cgroup", value_parser = parse_bytes)]
    pub memory_max: Option<u64>,

    /// Most CPU time of the control group, in hundredths of a CPU: 250 is two and a half [default: no limit]
    #[arg(long, value_name = "PERCENT", requires = "cgroup", value_parser = clap::value_parser!(u32).range(1..))]
    pub cpu_max: Option<u32>,

    /// Most processes and threads of the control group [default: no limit]
    #[arg(long, value_name = "COUNT", requires = "cgroup")]
    pub pids_max: Option<u32>,

    /// `run` and its arguments
    #[arg(last = true, required = true, value_name = "run …")]
    pub command: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Args, Command};
    use super::*;

    fn parse(args: &[&str]) -> Result<JailArgs, clap::Error> {
        let args = Args::try_parse_from(["vmm-cli", "jail"].iter().chain(args))?;
        let Command::Jail(args) = args.command else { panic!("not jail") };
        Ok(args)
    }

    #[test]
    fn what_follows_the_hyphens_is_the_machines() {
        let args = parse(&["--uid", "7", "--", "run", "--memory", "64M", "vm.toml"]).unwrap();
        assert_eq!((args.uid, args.gid, args.user_namespace), (Some(7), None, None));
        assert_eq!(args.command, ["run", "--memory", "64M", "vm.toml"].map(OsString::from));
    }

    #[test]
    fn a_limit_belongs_to_a_group_and_a_group_to_a_user() {
        for args in [&["--gid", "7"], &["--memory-max", "1G"], &["--pids-max", "9"], &["--cpu-max", "50"]] {
            let args = [&args[..], &["--", "run"]].concat();
            assert_eq!(parse(&args).unwrap_err().exit_code(), 2, "{args:?}");
        }
        let args =
            ["--cgroup", "vm", "--memory-max", "1G", "--cpu-max", "250", "--pids-max", "9", "--", "run"];
        let args = parse(&args).unwrap();
        assert_eq!((args.memory_max, args.cpu_max, args.pids_max), (Some(1 << 30), Some(250), Some(9)));
        assert!(parse(&["--cgroup", "vm", "--cpu-max", "0", "--", "run"]).is_err());
    }

    #[test]
    fn a_jail_without_a_machine_is_refused() {
        for args in [&[][..], &["run"], &["--"]] {
            assert_eq!(parse(args).unwrap_err().exit_code(), 2, "{args:?}");
        }
    }
}
