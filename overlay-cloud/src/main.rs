//! overlay-cloud: has the routes of a node's pods be in the cloud as overlay-agent asks, once. The agent
//! starts it for its backends `aws-vpc` and `gce`.

mod aws;
#[path = "../../overlay-agent/src/backend/cloud/exchange.rs"]
mod exchange;
mod gce;
mod plan;

use std::{
    env,
    io::{self, Read as _, Write as _},
    process::ExitCode,
};

use self::exchange::{Answer, Cloud, Problem, Request};

const USAGE: &str = "overlay-cloud is started by overlay-agent for the backends aws-vpc and gce: it reads one request \
                     of JSON from standard input and answers on standard output";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match env::args().nth(1).as_deref() {
        None => {}
        Some("--version") => {
            println!("overlay-cloud {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Some(_) => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> io::Result<()> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let request: Request = serde_json::from_str(&text)?;
    let mut answer = Answer::default();
    let served = match request.cloud {
        Cloud::AwsVpc => aws::serve(&request, &mut answer).await,
        Cloud::Gce => gce::serve(&request, &mut answer).await,
    };
    answer.problems.extend(served.err());
    let mut text = serde_json::to_string(&answer)?;
    text.push('\n');
    io::stdout().write_all(text.as_bytes())
}

impl Answer {
    /// Takes note of a change, or of what prevented it.
    fn note(&mut self, change: String, result: Result<(), Problem>) {
        match result {
            Ok(()) => self.changes.push(change),
            Err(problem) => self.problems.push(problem),
        }
    }
}
