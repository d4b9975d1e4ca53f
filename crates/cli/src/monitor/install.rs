//! `leakscope monitor init`, `install` and `uninstall`: files are shown before they are written.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use leakscope_monitor::config::default_state;
use leakscope_monitor::install::{Found, UNIT, cron_line, sample_config, unit, with_cron_line};
use leakscope_monitor::{Config, evidence};

use crate::flags::monitor::{InitArgs, InstallArgs, UninstallArgs};

/// Programs that the sample names.
const NAMES: usize = 3;

/// `init`.
///
/// # Errors
/// When the file is there, or cannot be written.
pub fn init(args: &InitArgs) -> Result<()> {
    let found = Found {
        names: evidence::largest_names(NAMES),
        sendmail: Path::new("/usr/sbin/sendmail").exists(),
        state: default_state().to_string_lossy().into_owned(),
    };
    let text = sample_config(&found);
    if args.file == Path::new("-") {
        print!("{text}");
        return Ok(());
    }
    if args.file.exists() && !args.force {
        bail!("{} is there already; --force writes over it", args.file.display());
    }
    if let Some(folder) = args.file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    fs::write(&args.file, text).with_context(|| format!("write {}", args.file.display()))?;
    println!("{}: written; next: look at it, then leakscope monitor run --config {0}", args.file.display());
    Ok(())
}

/// `install`.
///
/// # Errors
/// When the configuration has mistakes, it is not agreed to, or something cannot be written.
pub fn install(args: &InstallArgs) -> Result<()> {
    let config = Config::read(&args.config.config)?;
    let program = std::env::current_exe().context("find this program")?;
    let path = fs::canonicalize(&args.config.config).context("find the configuration")?;
    if args.cron {
        let now = with_cron_line(&crontab()?, Some(&cron_line(&program, &path)));
        println!("this user's crontab becomes:\n\n{now}");
        return agree(args.yes).and_then(|()| set_crontab(&now));
    }
    let text = unit(&program, &path, &config.state);
    let place = args.unit_dir.join(UNIT);
    println!("{}:\n\n{text}", place.display());
    agree(args.yes)?;
    // Protected as the unit is, the service cannot make its folder itself.
    fs::create_dir_all(&config.state).with_context(|| format!("make {}", config.state.display()))?;
    fs::write(&place, text).with_context(|| format!("write {}", place.display()))?;
    println!("written; next: systemctl daemon-reload && systemctl enable --now {UNIT}");
    Ok(())
}

/// `uninstall`.
///
/// # Errors
/// When it is not agreed to, or something cannot be removed.
pub fn uninstall(args: &UninstallArgs) -> Result<()> {
    let place = args.unit_dir.join(UNIT);
    let known = crontab().unwrap_or_default();
    let rest = with_cron_line(&known, None);
    let has_line = known.lines().count() != rest.lines().count();
    if !place.exists() && !has_line {
        println!("nothing is installed");
        return Ok(());
    }
    if place.exists() {
        println!("to be removed: {} (systemctl disable --now {UNIT} stops it)", place.display());
    }
    if has_line {
        println!("to be removed: the line of leakscope-monitor in this user's crontab");
    }
    agree(args.yes)?;
    if place.exists() {
        fs::remove_file(&place).with_context(|| format!("remove {}", place.display()))?;
    }
    if has_line {
        set_crontab(&rest)?;
    }
    println!("removed; the history stays");
    Ok(())
}

fn agree(yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        bail!("not written: nobody can be asked here; --yes agrees");
    }
    print!("write this? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("not written");
    }
    Ok(())
}

/// This user's crontab; empty when there is none.
fn crontab() -> Result<String> {
    let output = Command::new("crontab").arg("-l").output().context("start crontab; install the package cron")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn set_crontab(text: &str) -> Result<()> {
    let mut child = Command::new("crontab").arg("-").stdin(Stdio::piped()).spawn().context("start crontab")?;
    child.stdin.take().context("write to crontab")?.write_all(text.as_bytes())?;
    if !child.wait()?.success() {
        bail!("crontab did not take the new table");
    }
    println!("the crontab is written");
    Ok(())
}
