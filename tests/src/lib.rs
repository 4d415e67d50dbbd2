//! The real servers that the stories run against, each in a process of its own that never outlives the test.

mod child;
mod kafka;
mod s3;

pub use kafka::KafkaServer;
pub use s3::VersityGw;
