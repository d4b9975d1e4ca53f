//! Questions to what has been exported, answered by DataFusion.
//!
//! The questions are SQL of the kind that other engines read as well (`--show-sql`): no functions of time, because times are
//! seconds, no division of whole numbers, which engines understand differently, and the regression by its sums.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::ListingOptions;
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::export::{day, service};
use crate::place::Place;
use crate::rows;

const DAY: u64 = 86_400;

/// What to ask, and whom.
#[derive(Debug, Args)]
pub struct QueryArgs {
    /// What `export --to` wrote: a folder, or s3://BUCKET/PREFIX
    #[arg(value_name = "URL")]
    url: String,
    /// The question
    #[arg(value_name = "QUESTION", required_unless_present = "sql", conflicts_with = "sql")]
    question: Option<Question>,
    /// The target of `history`, as the monitor names it: `name:nginx`
    #[arg(value_name = "TARGET")]
    target: Option<String>,
    /// A question in SQL, to the tables `samples` and `events`
    #[arg(long, value_name = "TEXT")]
    sql: Option<String>,
    /// This machine alone
    #[arg(long, value_name = "NAME")]
    machine: Option<String>,
    /// How far back: a number with m, h or d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = length)]
    last: u64,
    /// Up to this moment, seconds since the epoch; now, when it is not given
    #[arg(long, value_name = "SECONDS")]
    until: Option<u64>,
    /// How long a stretch is that becomes one row: a number with m, h or d; an hour, or five minutes for less than 12 hours
    #[arg(long, value_name = "TIME", value_parser = length)]
    bin: Option<u64>,
    /// Rows at most
    #[arg(long, value_name = "N", default_value_t = 20)]
    most: u64,
    /// Comma-separated values
    #[arg(long)]
    csv: bool,
    /// Print the question as SQL, for other engines, and do not ask it
    #[arg(long)]
    show_sql: bool,
}

/// The questions that `leakscope monitor status` and `history` answer on one machine.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Question {
    /// Each target's newest sample
    Status,
    /// What grows most: the slope of the lowest memory of each hour
    TopGrowth,
    /// How a target went
    History,
    /// What happened
    Events,
}

/// Asks; gives the answer as text.
///
/// # Errors
/// When the place cannot be read, or the question makes no sense.
pub async fn run(args: &QueryArgs) -> Result<String> {
    let sql = match (&args.sql, args.question) {
        (Some(sql), _) => sql.clone(),
        (None, Some(question)) => sql(question, args)?,
        (None, None) => bail!("a question or --sql is expected"),
    };
    if args.show_sql {
        return Ok(format!("{sql}\n"));
    }
    let place = Place::open(&args.url)?;
    let context = open(&place).await?;
    let frame = context.sql(&sql).await.with_context(|| format!("understand {sql}"))?;
    let schema: SchemaRef = Arc::clone(frame.schema().inner());
    let batches = frame.collect().await.with_context(|| format!("answer {sql}"))?;
    let names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
    let rows = texts(&batches)?;
    Ok(if args.csv { csv(&names, &rows) } else { table(&names, &rows) })
}

/// A session with both tables.
async fn open(place: &Place) -> Result<SessionContext> {
    let config = SessionConfig::new().with_information_schema(true);
    let context = SessionContext::new_with_config(config);
    if place.url.scheme() == "s3" {
        context.register_object_store(&place.url, Arc::clone(&place.store));
    }
    let text = |name: &str| (name.to_owned(), DataType::Utf8);
    for (name, folders, schema) in [
        ("samples", vec![text("day"), text("service")], rows::sample_schema()),
        ("events", vec![text("day")], rows::event_schema()),
    ] {
        let options = ListingOptions::new(Arc::new(ParquetFormat::default()))
            .with_file_extension(".parquet")
            .with_table_partition_cols(folders);
        let url = place.url.join(&format!("{name}/")).context("name a table's folder")?;
        context
            .register_listing_table(name, url.as_str(), options, Some(schema), None)
            .await
            .with_context(|| format!("find the table {name}"))?;
    }
    Ok(context)
}

/// A question in SQL.
fn sql(question: Question, args: &QueryArgs) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let until = args.until.unwrap_or(now);
    let from = until.saturating_sub(args.last);
    let bin = args.bin.unwrap_or(if args.last < DAY / 2 { 300 } else { 3600 }).max(1);
    let most = args.most;
    let mut which = format!(
        "day >= '{}' AND day <= '{}' AND at_seconds > {from} AND at_seconds <= {until}",
        day(from)?,
        day(until)?
    );
    if let Some(machine) = &args.machine {
        let _ = write!(which, " AND machine = {}", quoted(machine));
    }
    let memory = "coalesce(anonymous + coalesce(swap, 0), resident)";
    Ok(match question {
        Question::Status => format!(
            "WITH newest AS (SELECT machine, target, max(at_seconds) AS at_seconds FROM samples WHERE {which} GROUP BY machine, target)
SELECT s.machine, s.target, s.at_seconds, s.life, {memory} AS memory, s.threads, s.descriptors
FROM samples s JOIN newest n ON s.machine = n.machine AND s.target = n.target AND s.at_seconds = n.at_seconds
WHERE s.day >= '{}' AND s.day <= '{}'
ORDER BY s.machine, s.target",
            day(from)?,
            day(until)?
        ),
        Question::TopGrowth => format!(
            "WITH lows AS (
    SELECT machine, target, CAST(at_seconds - at_seconds % {bin} - {start} AS DOUBLE) / 3600.0 AS hour, CAST(min({memory}) AS DOUBLE) AS low
    FROM samples WHERE {which} GROUP BY machine, target, CAST(at_seconds - at_seconds % {bin} - {start} AS DOUBLE) / 3600.0),
sums AS (
    SELECT machine, target, CAST(count(*) AS DOUBLE) AS n, sum(hour) AS x, sum(low) AS y, sum(hour * hour) AS xx,
        sum(hour * low) AS xy, max(low) AS highest
    FROM lows GROUP BY machine, target)
SELECT machine, target, (n * xy - x * y) / (n * xx - x * x) AS bytes_per_hour, highest, n AS stretches
FROM sums WHERE n >= 3 ORDER BY bytes_per_hour DESC, machine, target LIMIT {most}",
            start = from - from % bin
        ),
        Question::History => {
            let Some(target) = &args.target else { bail!("history of what? name a target, such as name:nginx") };
            format!(
                "SELECT machine, at_seconds - at_seconds % {bin} AS from_seconds, life, count(*) AS samples, avg(resident) AS resident,
    min(resident) AS lowest, max(resident) AS highest, avg(anonymous) AS anonymous, avg(threads) AS threads,
    avg(descriptors) AS descriptors
FROM samples WHERE {which} AND service = {} AND target = {}
GROUP BY machine, at_seconds - at_seconds % {bin}, life ORDER BY machine, at_seconds - at_seconds % {bin}, life",
                quoted(&service(target)),
                quoted(target)
            )
        }
        Question::Events => format!(
            "SELECT at_seconds, machine, target, kind, text FROM events WHERE {which} ORDER BY at_seconds DESC, machine, target LIMIT {most}"
        ),
    })
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn texts(batches: &[RecordBatch]) -> Result<Vec<Vec<String>>> {
    let options = FormatOptions::default();
    let mut rows = Vec::new();
    for batch in batches {
        let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options));
        let columns: Vec<ArrayFormatter<'_>> = columns.collect::<Result<_, _>>().context("show a column")?;
        for row in 0..batch.num_rows() {
            rows.push(columns.iter().map(|column| column.value(row).to_string()).collect());
        }
    }
    Ok(rows)
}

fn csv(names: &[String], rows: &[Vec<String>]) -> String {
    let field = |text: &String| {
        let is_plain = !text.contains(['"', ',', '\n', '\r']);
        if is_plain { text.clone() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
    };
    let line = |row: &[String]| row.iter().map(field).collect::<Vec<_>>().join(",") + "\n";
    line(names) + &rows.iter().map(|row| line(row)).collect::<String>()
}

fn table(names: &[String], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..names.len())
        .map(|column| {
            let all = rows.iter().map(|row| &row[column]).chain([&names[column]]);
            all.map(|text| text.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in std::iter::once(&names.to_vec()).chain(rows) {
        let fields = row.iter().zip(&widths).map(|(field, &width)| format!("{field:width$}"));
        let line = fields.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Seconds in `30m`, `24h`, `7d`.
fn length(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no time; write a number with m, h or d, such as 24h");
    let (digits, unit) = text.split_at(text.len().saturating_sub(text.chars().next_back().map_or(0, char::len_utf8)));
    let factor = match unit {
        "m" => 60,
        "h" => 3600,
        "d" => DAY,
        _ => return Err(wrong()),
    };
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(wrong)
}
