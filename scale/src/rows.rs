//! Samples and events as columns, and as Parquet.
//!
//! Numbers are written as differences: what changes little takes little more than a bit. 64-bit integers are signed because
//! not every engine has others; times are seconds since the epoch for the same reason.

use std::sync::Arc;

use anyhow::{Context, Result};
use datafusion::arrow::array::{ArrayRef, Int32Builder, Int64Builder, RecordBatch, StringBuilder};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use leakscope_history::{Event, METRICS, NAMES, Values};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

/// Rows of a row group: large enough to compress, small enough to be skipped.
const GROUP_ROWS: usize = 131_072;

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The machine.
    pub machine: String,
    /// The target, as the monitor names it.
    pub target: String,
    /// Seconds since the epoch.
    pub at: u64,
    /// How often it had been restarted.
    pub life: u16,
    /// The values.
    pub values: Values,
}

/// The columns of samples, without those that are folders.
pub fn sample_schema() -> SchemaRef {
    let mut fields = vec![
        Field::new("machine", DataType::Utf8, false),
        Field::new("target", DataType::Utf8, false),
        Field::new("at_seconds", DataType::Int64, false),
        Field::new("life", DataType::Int32, false),
    ];
    fields.extend(NAMES.iter().map(|name| Field::new(*name, DataType::Int64, true)));
    Arc::new(Schema::new(fields))
}

/// The columns of events, without those that are folders.
pub fn event_schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    Arc::new(Schema::new(vec![
        text("machine"),
        text("target"),
        Field::new("at_seconds", DataType::Int64, false),
        text("kind"),
        text("text"),
    ]))
}

/// Samples as columns.
///
/// # Errors
/// When Arrow refuses.
pub fn sample_batch(samples: &[Sample]) -> Result<RecordBatch> {
    let (mut machine, mut target) = (StringBuilder::new(), StringBuilder::new());
    let (mut at, mut life) = (Int64Builder::new(), Int32Builder::new());
    let mut values: [Int64Builder; METRICS] = std::array::from_fn(|_| Int64Builder::new());
    for sample in samples {
        machine.append_value(&sample.machine);
        target.append_value(&sample.target);
        at.append_value(signed(sample.at));
        life.append_value(i32::from(sample.life));
        for (column, value) in values.iter_mut().zip(sample.values) {
            column.append_option(value.map(signed));
        }
    }
    let mut columns: Vec<ArrayRef> =
        vec![Arc::new(machine.finish()), Arc::new(target.finish()), Arc::new(at.finish()), Arc::new(life.finish())];
    columns.extend(values.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
    RecordBatch::try_new(sample_schema(), columns).context("put samples into columns")
}

/// Events of a machine as columns.
///
/// # Errors
/// When Arrow refuses.
pub fn event_batch(machine: &str, events: &[Event]) -> Result<RecordBatch> {
    let mut texts: [StringBuilder; 4] = std::array::from_fn(|_| StringBuilder::new());
    let mut at = Int64Builder::new();
    for event in events {
        for (column, text) in texts.iter_mut().zip([machine, &event.target, &event.kind, &event.text]) {
            column.append_value(text);
        }
        at.append_value(signed(event.at));
    }
    let [machine, target, kind, text] = texts.map(|mut column| Arc::new(column.finish()) as ArrayRef);
    RecordBatch::try_new(event_schema(), vec![machine, target, Arc::new(at.finish()), kind, text])
        .context("put events into columns")
}

/// What no memory has does not become negative.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A Parquet file that grows in memory, compressed.
///
/// # Errors
/// When Parquet refuses the schema.
pub fn writer(schema: &SchemaRef) -> Result<ArrowWriter<Vec<u8>>> {
    let level = ZstdLevel::try_new(3).context("zstd's level")?;
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_created_by(concat!("leakscope-lake ", env!("CARGO_PKG_VERSION")).to_owned());
    for field in schema.fields().iter().filter(|field| field.data_type().is_integer()) {
        let column = ColumnPath::from(field.name().as_str());
        properties = properties
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
    }
    ArrowWriter::try_new(Vec::new(), Arc::clone(schema), Some(properties.build())).context("begin a Parquet file")
}
