//! What is read for each scrape.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet},
    metrics::MetricType,
};

/// Labels of a value there is one of.
pub const UNLABELLED: [(&str, &str); 0] = [];

/// Something that knows current values.
pub trait Source: fmt::Debug + Send + Sync + 'static {
    /// Writes them down. What cannot be read now is left out.
    fn tell(&self, sheet: &mut Sheet<'_>) -> fmt::Result;
}

/// Where a [`Source`] writes.
pub struct Sheet<'a>(DescriptorEncoder<'a>);

impl Sheet<'_> {
    /// Values that go up and down, with the labels of each. No rows, no metric.
    pub fn gauge<L: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let mut rows = rows.into_iter().peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        let encoder = &mut self.0;
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in rows {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// Values that only go up. The name gets `_total` behind it.
    pub fn counter<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut rows = rows.into_iter().peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        let encoder = &mut self.0;
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in rows {
            let mut row = metric.encode_family(&labels)?;
            row.encode_counter::<[(&str, &str); 0], u64, f64>(&value, None)?;
        }
        Ok(())
    }

    /// A counter of fractions, without labels.
    pub fn seconds(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let encoder = &mut self.0;
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<[(&str, &str); 0], f64, f64>(&value, None)
    }
}

/// A source as the registry takes it.
#[derive(Debug)]
pub struct Scraped<T>(pub T);

impl<T: Source> Collector for Scraped<T> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.tell(&mut Sheet(encoder))
    }
}
