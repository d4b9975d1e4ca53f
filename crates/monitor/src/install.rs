//! What `install` writes: a systemd unit, or a line for crontab; and the configuration that `init` writes. Pure.

use std::fmt::Write;
use std::path::Path;

/// Name of the unit.
pub const UNIT: &str = "leakscope-monitor.service";

/// The unit for a daemon with this program and configuration.
pub fn unit(program: &Path, config: &Path, state: &Path) -> String {
    let word = |path: &Path| systemd_word(&path.to_string_lossy());
    format!(
        "[Unit]\n\
         Description=leakscope monitor: watches memory and raises the alarm before it runs out\n\
         Documentation=man:leakscope(1)\n\
         After=network.target\n\
         \n\
         [Service]\n\
         Type=exec\n\
         ExecStart={} monitor run --config {}\n\
         Restart=on-failure\n\
         RestartSec=30\n\
         # It must live when memory runs out, and must not be what uses it up.\n\
         OOMScoreAdjust=-500\n\
         # Checks are processes of their own, which may need more for a moment; one that is ended does not end the rest.\n\
         MemoryHigh=256M\n\
         MemoryMax=1G\n\
         OOMPolicy=continue\n\
         CPUWeight=20\n\
         NoNewPrivileges=yes\n\
         ProtectSystem=strict\n\
         ReadWritePaths={}\n\
         ProtectHome=read-only\n\
         PrivateTmp=yes\n\
         RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6\n\
         LockPersonality=yes\n\
         MemoryDenyWriteExecute=yes\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        word(program),
        word(config),
        word(state)
    )
}

/// A word of a unit file: in quotes, with what systemd would replace taken literally.
fn systemd_word(text: &str) -> String {
    let mut word = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => word.extend(['\\', c]),
            '%' => word.push_str("%%"),
            '$' => word.push_str("$$"),
            c if c.is_control() => _ = write!(word, "\\x{:02x}", c as u32),
            c => word.push(c),
        }
    }
    word.push('"');
    word
}

/// The line for crontab: every five minutes.
pub fn cron_line(program: &Path, config: &Path) -> String {
    let word = |path: &Path| {
        // cron takes an unescaped percent sign for a line end.
        format!("'{}'", path.to_string_lossy().replace('\'', "'\\''")).replace('%', "\\%")
    };
    format!("*/5 * * * * {} monitor once --quiet --config {} # leakscope-monitor", word(program), word(config))
}

/// A crontab with our line in it once, or without it.
pub fn with_cron_line(crontab: &str, line: Option<&str>) -> String {
    let mut out: String = crontab
        .lines()
        .filter(|known| !known.trim_end().ends_with("# leakscope-monitor"))
        .fold(String::new(), |text, known| text + known + "\n");
    if let Some(line) = line {
        out.push_str(line);
        out.push('\n');
    }
    out
}

/// What `init` finds on this machine.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Names of the programs with the most memory, most first.
    pub names: Vec<String>,
    /// Whether a sendmail is there.
    pub sendmail: bool,
    /// Where the state would be kept.
    pub state: String,
}

/// A commented configuration for this machine.
pub fn sample_config(found: &Found) -> String {
    let mut text = String::from(
        "# leakscope monitor. Every key that is commented out shows its default or an example.\n\n\
         # interval = \"10s\"          # between two samples\n",
    );
    let _ = writeln!(text, "# state = {}", toml_text(&found.state));
    text.push_str(
        "# machine = \"web-1\"         # in messages; the host name otherwise\n\
         # kernel = true             # watch slab caches, vmalloc, page tables, per-CPU memory\n\
         # pressure = 20             # per cent of time that tasks wait for memory, for an alarm\n\
         # core_size = \"2GB\"         # most memory in a core\n\n\
         # Checks, how often. A leak check stops a program under `leakscope run` for a moment.\n\
         # leak_check = \"1h\"\n\
         # kmemleak = \"24h\"         # lets the kernel scan itself, where it was built for that\n\
         # kernel_trace = \"1h\"      # half a minute of sampled tracing by eBPF\n\n\
         # What is watched. Each [[watch]] has one of: name, pid_file, unit, cgroup, container, top.\n\n\
         [[watch]]\n\
         top = 20                    # the names that grow most\n\n\
         # [[watch]]\n\
         # unit = \"database.service\"\n\
         # core = \"once\"             # near its group's limit: of its largest process, which goes on\n\n",
    );
    for name in &found.names {
        let _ = writeln!(text, "# [[watch]]\n# name = {}\n# limit = \"2GB\"\n# warm_up = \"2m\"\n", toml_text(name));
    }
    text.push_str(
        "# The page and /metrics for Prometheus: http://127.0.0.1:7878/\n\
         [page]\n\
         # listen = \"127.0.0.1:7878\"\n\
         # token_file = \"/etc/leakscope/page-token\"  # needed beyond this machine, with TLS:\n\
         # certificate = \"/etc/leakscope/page.pem\"\n\
         # key = \"/etc/leakscope/page.key\"\n\
         # behind_proxy = true       # a proxy in front has TLS\n\n\
         # Metrics pushed to a collector of OpenTelemetry.\n\
         # [otlp]\n\
         # url = \"http://localhost:4318/v1/metrics\"\n\
         # interval = \"60s\"\n\n\
         # When to speak.\n\
         # [alerts]\n\
         # repeat = \"24h\"            # or \"never\"\n\
         # quiet_hours = \"22:00-07:00\"\n\
         # digest = \"08:00\"          # gather, and say once a day\n\
         # most_a_day = 20\n\n\
         # To whom. Several of each are possible. Try them with `leakscope monitor test-alert`.\n\n",
    );
    let comment = if found.sendmail { "" } else { "# " };
    let _ = writeln!(text, "{comment}[mail]\n{comment}to = [\"root@localhost\"]");
    text.push_str(
        "# host = \"smtp.example.org\" # without it the local sendmail takes the mail\n\
         # tls = \"starttls\"          # or \"tls\", \"none\"\n\
         # user = \"alerts\"\n\
         # password_file = \"/etc/leakscope/smtp-password\"\n\n\
         # [[webhook]]\n# url = \"https://example.org/hook\"\n# secret_env = \"LEAKSCOPE_HOOK_SECRET\"\n\n\
         # [[slack]]                 # also [[feishu]], [[dingtalk]]\n# url_file = \"/etc/leakscope/slack-url\"\n\n\
         # [[alertmanager]]\n# url = \"http://localhost:9093\"\n\n\
         # [[command]]\n# run = [\"/usr/local/bin/page-me\"]\n",
    );
    text
}

fn toml_text(text: &str) -> String {
    let escaped = text.chars().flat_map(|c| match c {
        '"' | '\\' => vec!['\\', c],
        c if c.is_control() => vec!['?'],
        c => vec![c],
    });
    format!("\"{}\"", escaped.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    #[test]
    fn the_sample_is_a_configuration_also_without_its_comments() {
        let found = Found { names: vec!["a\"b\\\n".into()], sendmail: true, state: "/s".into() };
        let text = sample_config(&found);
        let config = Config::decode(&text).unwrap();
        assert_eq!((config.watch.len(), config.channels.len()), (1, 1));
        // Every example must be right as well. Headers of a comment begin with another letter than a key has.
        let is_code =
            |line: &str| line.starts_with('[') || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
        let uncommented = text.lines().fold(String::new(), |out, line| {
            let code = line.strip_prefix("# ").filter(|rest| is_code(rest)).unwrap_or(line);
            out + code + "\n"
        });
        let all = Config::decode(&uncommented).unwrap_or_else(|problems| panic!("{problems:?}\n{uncommented}"));
        assert_eq!((all.watch.len(), all.channels.len(), all.core_bytes), (3, 5, 2_000_000_000));
        assert_eq!(all.policy.quiet_hours, Some((22, 7)));
        assert_eq!(
            (all.checks.leak_check, all.checks.kmemleak, all.checks.kernel_trace),
            (Some(3600), Some(86_400), Some(3600))
        );
        assert!(config.page.is_some() && all.page.is_some_and(|page| page.tls.is_some()) && all.otlp.is_some());
    }

    #[test]
    fn words_stay_words() {
        let unit = unit(Path::new("/opt/a b/leakscope"), Path::new("/etc/x%y\"z.toml"), Path::new("/s"));
        assert!(
            unit.contains("ExecStart=\"/opt/a b/leakscope\" monitor run --config \"/etc/x%%y\\\"z.toml\"\n"),
            "{unit}"
        );
        let line = cron_line(Path::new("/usr/bin/leakscope"), Path::new("/etc/50%.toml"));
        let once = with_cron_line("1 2 3 4 5 other", Some(&line));
        assert!(line.contains("'/etc/50\\%.toml'"));
        assert_eq!(with_cron_line(&once, Some(&line)), once);
        assert_eq!(with_cron_line(&once, None), "1 2 3 4 5 other\n");
    }
}
