//! The command `vmm-cli`.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use vmm_cli::args::{Args, Command};
use vmm_cli::config::VmConfig;
use vmm_cli::confinement::listing;
use vmm_cli::outcome::Failure;
use vmm_cli::{control, doctor, jail, messages, run};

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Run(args) => configured(&args).and_then(|config| run::run(&config)),
        Command::Check(args) => configured(&args).and_then(|config| {
            run::check(&config)?;
            // Whoever closed standard output does not want to know.
            let _ = std::io::stdout().write_all(config.to_toml().as_bytes());
            Ok(ExitCode::SUCCESS)
        }),
        Command::Doctor(args) => doctor::run(&args),
        Command::Filters(args) => listing::run(&args),
        Command::Jail(args) => jail::run(&args),
        Command::Ctl(args) => Ok(control::client::run(&args)),
    };
    let code = result.unwrap_or_else(|failure| {
        messages::tell(format_args!("vmm-cli: {failure}\n"));
        ExitCode::from(failure.exit_code())
    });
    messages::flush();
    code
}

fn configured(args: &vmm_cli::args::VmArgs) -> Result<VmConfig, Failure> {
    VmConfig::load(args).map_err(Failure::bad_input)
}
