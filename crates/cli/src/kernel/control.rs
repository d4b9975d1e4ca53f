//! `leakscope kernel dump`, `clear` and `set`: kmemleak's commands.

use std::process::ExitCode;

use anyhow::{Result, bail};
use leakscope_kernel::Places;
use leakscope_kernel::kmemleak::Kmemleak;
use leakscope_kernel::mounts::Mounted;

use crate::flags::kernel::{AutoScan, DumpArgs, MountArgs, OnOff, SetArgs, SettingsArgs};

/// kmemleak, with debugfs mounted for as long as this is there, if that was asked for and needed.
pub struct Opened {
    /// kmemleak.
    pub kmemleak: Kmemleak,
    _mounted: Option<Mounted>,
}

/// Finds kmemleak.
///
/// # Errors
/// It is not there or does not work; the message says what to do.
pub fn open(args: &MountArgs) -> Result<Opened> {
    let places = Places::default();
    let mounted = if args.mount { Mounted::debugfs(&places)? } else { None };
    Ok(Opened { kmemleak: Kmemleak::open(&places)?, _mounted: mounted })
}

/// Prints what kmemleak knows of an object.
pub fn dump(args: &DumpArgs) -> Result<ExitCode> {
    let opened = open(&args.mount)?;
    for line in opened.kmemleak.dump_object(args.address)? {
        println!("{}", line.chars().filter(|c| !c.is_control()).collect::<String>());
    }
    Ok(ExitCode::SUCCESS)
}

/// Forgets what is reported now.
pub fn clear(args: &MountArgs) -> Result<ExitCode> {
    open(args)?.kmemleak.clear()?;
    Ok(ExitCode::SUCCESS)
}

/// Changes settings.
pub fn set(args: &SetArgs) -> Result<ExitCode> {
    let SettingsArgs { stack, scan } = args.settings;
    if stack.is_none() && scan.is_none() && !args.off_until_reboot {
        bail!("nothing to set; give --stack=on|off, --scan=SECS|on|off or --off-until-reboot");
    }
    let opened = open(&args.mount)?;
    apply(&opened.kmemleak, &args.settings)?;
    if args.off_until_reboot {
        opened.kmemleak.switch_off()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Seconds between kmemleak's own scans, when nobody says otherwise. Source: Linux `mm/kmemleak.c`, `SECS_SCAN_WAIT`.
const DEFAULT_SECONDS: u32 = 600;

/// Changes the settings that were given.
pub fn apply(kmemleak: &Kmemleak, settings: &SettingsArgs) -> Result<()> {
    if let Some(stack) = settings.stack {
        kmemleak.set_stack(stack == OnOff::On)?;
    }
    match settings.scan {
        None => {}
        Some(AutoScan::On) => kmemleak.set_auto_scan(Some(DEFAULT_SECONDS))?,
        Some(AutoScan::Off) => kmemleak.set_auto_scan(None)?,
        Some(AutoScan::Every(seconds)) => kmemleak.set_auto_scan(Some(seconds))?,
    }
    Ok(())
}
