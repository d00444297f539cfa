//! A double of the metadata server and of the routes of Compute Engine, after the documentation of their REST
//! interfaces: <https://cloud.google.com/compute/docs/reference/rest/v1/routes>.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use serde_json::{Value, json};

use super::{Programs, launch};
use crate::{
    double::{Answer, Double, Request},
    lab::{Lab, agent::Launch, underlay::router_address},
};

const PORT: u16 = 5002;
const PROJECT: &str = "lab";
const ZONE: &str = "europe-west1-b";
const TOKEN: &str = "token-of-the-lab";
const API: &str = "https://www.googleapis.com/compute/v1";

/// What the double knows, and what is wrong with it.
#[derive(Debug, Default)]
struct State {
    routes: BTreeMap<String, Value>,
    /// Operations that run, with the route that comes of them, and those that were asked for once.
    operations: BTreeMap<String, Option<Value>>,
    asked: BTreeSet<String>,
    changes: Vec<String>,
    /// Answered to what would change something.
    forbidden: Option<String>,
    /// What operations end with.
    failure: Option<String>,
}

/// Compute Engine, as the nodes of a lab see it.
pub struct Gce {
    state: Arc<Mutex<State>>,
    _double: Double,
}

impl Gce {
    pub fn start(lab: &Lab) -> Result<Self> {
        let state: Arc<Mutex<State>> = Arc::default();
        let names = lab.nodes().iter();
        let names: BTreeMap<Ipv4Addr, String> = names
            .map(|node| (node.address, node.name.clone()))
            .collect();
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), PORT);
        let shared = Arc::clone(&state);
        let double = Double::serve(lab.underlay().router(), address, move |request| {
            if request.path.starts_with("/computeMetadata/") {
                return metadata(request, &names);
            }
            api(request, &mut locked(&shared))
        })?;
        Ok(Self {
            state,
            _double: double,
        })
    }

    pub fn launch(&self, lab: &Lab, programs: &Programs) -> Result<Launch> {
        let home = ("HOME", lab.dir().display().to_string());
        let variables: Vec<_> = Self::variables().into_iter().chain([home]).collect();
        launch(lab, programs, &variables)
    }

    /// What has overlay-cloud find it.
    pub fn variables() -> [(&'static str, String); 2] {
        let host = format!("{}:{PORT}", router_address(0));
        let endpoint = format!("http://{host}");
        [
            ("GCE_METADATA_HOST", host),
            ("OVERLAY_GCE_ENDPOINT", endpoint),
        ]
    }

    /// The routes by their names: the instances they lead to.
    pub fn routes(&self) -> BTreeMap<String, String> {
        let state = locked(&self.state);
        let routes = state.routes.iter();
        let hop = |route: &Value| {
            route["nextHopInstance"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let base = |url: String| url.rsplit('/').next().unwrap_or_default().to_owned();
        routes
            .map(|(name, route)| (name.clone(), base(hop(route))))
            .collect()
    }

    /// A route as somebody else has made it.
    pub fn put(&self, name: &str, destination: &str, instance: &str) {
        let route = json!({
            "name": name, "destRange": destination, "priority": 1000,
            "network": format!("{API}/projects/{PROJECT}/global/networks/default"),
            "nextHopInstance": format!("{API}/projects/{PROJECT}/zones/{ZONE}/instances/{instance}"),
        });
        locked(&self.state).routes.insert(name.to_owned(), route);
    }

    /// What was changed since this was asked last.
    pub fn changes(&self) -> Vec<String> {
        std::mem::take(&mut locked(&self.state).changes)
    }

    pub fn forbid(&self, message: Option<&str>) {
        locked(&self.state).forbidden = message.map(str::to_owned);
    }

    pub fn fail_operations(&self, message: Option<&str>) {
        locked(&self.state).failure = message.map(str::to_owned);
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn metadata(request: &Request, names: &BTreeMap<Ipv4Addr, String>) -> Answer {
    let flavor = ("Metadata-Flavor", "Google");
    if request.headers.get("metadata-flavor").map(String::as_str) != Some(flavor.1) {
        return Answer::new(403, "");
    }
    let path = request.path.trim_start_matches("/computeMetadata/v1/");
    let name = match request.client {
        IpAddr::V4(address) => names.get(&address).map(|name| (name, address)),
        IpAddr::V6(_) => None,
    };
    let answer = match (path.split('?').next().unwrap_or_default(), name) {
        ("project/project-id", _) => Answer::new(200, PROJECT),
        ("instance/", Some((name, address))) => {
            let told = json!({
                "name": name, "zone": format!("projects/4711/zones/{ZONE}"),
                "networkInterfaces": [
                    { "ip": address.to_string(), "network": "projects/4711/networks/default" },
                ],
            });
            Answer::new(200, told.to_string()).with("Content-Type", "application/json")
        }
        ("instance/service-accounts/default/token", _) => {
            let token =
                json!({ "access_token": TOKEN, "expires_in": 3599, "token_type": "Bearer" });
            Answer::new(200, token.to_string()).with("Content-Type", "application/json")
        }
        ("universe/universe-domain", _) => Answer::new(200, "googleapis.com"),
        _ => Answer::new(404, ""),
    };
    answer.with(flavor.0, flavor.1)
}

fn api(request: &Request, state: &mut State) -> Answer {
    let bearer = format!("Bearer {TOKEN}");
    if request.headers.get("authorization") != Some(&bearer) {
        return error(
            401,
            "Request is missing required authentication credential.",
        );
    }
    let path = request.path.split('?').next().unwrap_or_default();
    let path = path.trim_start_matches("/compute/v1/projects/lab/global/");
    let (kind, name) = path.split_once('/').unwrap_or((path, ""));
    let is_change = request.method != "GET";
    if let Some(message) = state.forbidden.as_ref().filter(|_| is_change) {
        return error(403, message);
    }
    match (request.method.as_str(), kind) {
        ("GET", "routes") => {
            let items: Vec<&Value> = state.routes.values().collect();
            json_answer(&json!({ "kind": "compute#routeList", "items": items }))
        }
        ("POST", "routes") => {
            let Ok(route) = serde_json::from_str::<Value>(&request.body) else {
                return error(400, "no route");
            };
            let name = route["name"].as_str().unwrap_or_default().to_owned();
            if state.routes.contains_key(&name) {
                return error(409, "The resource already exists");
            }
            state.begin("insert", &name, Some(route))
        }
        ("DELETE", "routes") if state.routes.remove(name).is_some() => {
            state.begin("delete", name, None)
        }
        ("GET" | "POST", "operations") => state.look(name.trim_end_matches("/wait")),
        _ => error(404, "The resource was not found"),
    }
}

impl State {
    fn begin(&mut self, action: &str, name: &str, comes: Option<Value>) -> Answer {
        self.changes.push(format!("{action} {name}"));
        let operation = format!("operation-{}", self.operations.len() + 1);
        self.operations.insert(operation.clone(), comes);
        json_answer(&operation_of(&operation, "RUNNING"))
    }

    /// It is done when it is looked at for the second time.
    fn look(&mut self, operation: &str) -> Answer {
        let Some(comes) = self.operations.get(operation).cloned() else {
            return error(404, "The resource was not found");
        };
        if self.asked.insert(operation.to_owned()) {
            return json_answer(&operation_of(operation, "RUNNING"));
        }
        let mut done = operation_of(operation, "DONE");
        if let Some(message) = &self.failure {
            let error = json!({ "code": "QUOTA_EXCEEDED", "message": message });
            done["error"] = json!({ "errors": [error] });
            done["httpErrorStatusCode"] = json!(403);
            done["httpErrorMessage"] = json!("FORBIDDEN");
        } else if let Some(mut route) = comes {
            for key in ["network", "nextHopInstance"] {
                // The API writes whole URLs.
                let path = route[key].as_str().unwrap_or_default();
                route[key] = json!(format!("{API}/{path}"));
            }
            let name = route["name"].as_str().unwrap_or_default().to_owned();
            self.routes.insert(name, route);
        }
        json_answer(&done)
    }
}

fn operation_of(name: &str, status: &str) -> Value {
    json!({
        "kind": "compute#operation", "id": "1", "name": name, "status": status,
        "selfLink": format!("{API}/projects/{PROJECT}/global/operations/{name}"),
    })
}

fn json_answer(value: &Value) -> Answer {
    Answer::new(200, value.to_string()).with("Content-Type", "application/json")
}

fn error(code: u16, message: &str) -> Answer {
    let reason = json!({ "message": message, "domain": "global", "reason": "x" });
    let value = json!({ "error": { "code": code, "message": message, "errors": [reason] } });
    let status = code;
    Answer {
        status,
        ..json_answer(&value)
    }
}
