//! A VPC with an instance for each node of a lab: moto, which emulates AWS, and a double of the instance
//! metadata service in its second version.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Programs, REGION, launch};
use crate::{
    double::{Answer, Double, Request},
    http,
    lab::{Lab, agent::Launch, underlay::router_address},
    netns::{Namespace, checked},
    process::{Daemon, Lifetime},
    wait::wait_for,
};

const API_PORT: u16 = 5000;
const METADATA_PORT: u16 = 5001;
const START_DEADLINE: Duration = Duration::from_mins(1);
const SESSION: &str = "session-of-the-lab";
const SESSION_HEADER: &str = "x-aws-ec2-metadata-token";
const LIFE_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";

/// Access to the API.
#[derive(Clone, Debug)]
struct Key {
    id: String,
    secret: String,
    /// That of a session; empty for a user's key.
    session: String,
}

/// An instance.
#[derive(Clone, Debug)]
pub struct Instance {
    pub id: String,
    pub interface: String,
}

/// The emulated VPC.
pub struct Vpc {
    programs: Programs,
    router: Namespace,
    dir: PathBuf,
    admin: Key,
    /// By which the nodes are who they are.
    pub nodes: Vec<Instance>,
    /// The main route table of the VPC, and two others.
    pub main: String,
    pub tables: Vec<String>,
    /// Requests without the token of a session, which IMDSv2 refuses.
    refused: Arc<Mutex<Vec<String>>>,
    _metadata: Double,
    _moto: Daemon,
}

impl Vpc {
    /// Starts it on the router of a lab. The nodes may do what `allowed` names.
    pub fn start(lab: &Lab, programs: &Programs, allowed: &[&str]) -> Result<Self> {
        let dir = lab.dir().join("aws");
        fs::create_dir_all(&dir)?;
        let router = lab.underlay().router().clone();
        let mut command = router.command(programs.python.to_str().context("a path in UTF-8")?);
        command
            .args(["-m", "moto.server", "-H", "0.0.0.0", "-p"])
            .arg(API_PORT.to_string());
        let moto = Daemon::start("moto", command, &dir.join("moto.log"), Lifetime::Bound)?;
        let server = SocketAddr::new(IpAddr::V4(router_address(0)), API_PORT);
        wait_for("moto to answer", START_DEADLINE, || {
            moto.check_running()?;
            http::get(&router, server, "/moto-api/data.json").map(drop)
        })?;
        let refused = Arc::default();
        let key = Key {
            id: "first".to_owned(),
            secret: "first".to_owned(),
            session: String::new(),
        };
        let said = boto(programs, &router, &key, &setup(lab))?;
        let text =
            |value: &Value| -> Result<String> { Ok(value.as_str().context("a text")?.to_owned()) };
        let key = |name: &str| -> Result<Key> {
            let [id, secret, session] = [0, 1, 2].map(|at| text(&said[name][at]));
            Ok(Key {
                id: id?,
                secret: secret?,
                session: session?,
            })
        };
        let instances = said["instances"].as_array().context("instances")?;
        let nodes = instances.iter().map(|pair| {
            Ok(Instance {
                id: text(&pair[0])?,
                interface: text(&pair[1])?,
            })
        });
        let nodes: Vec<Instance> = nodes.collect::<Result<_>>()?;
        let addresses = lab.nodes().iter().map(|node| node.address);
        let ids = nodes.iter().map(|node| node.id.clone());
        let metadata = metadata(
            &router,
            addresses.zip(ids).collect(),
            &key("node")?,
            &refused,
        )?;
        let tables = said["tables"].as_array().context("tables")?;
        let vpc = Self {
            programs: programs.clone(),
            router,
            dir,
            admin: key("admin")?,
            nodes,
            main: text(&said["main"])?,
            tables: tables.iter().map(text).collect::<Result<_>>()?,
            refused,
            _metadata: metadata,
            _moto: moto,
        };
        vpc.allow(allowed)?;
        // From here on, what IAM says holds.
        vpc.admin(&format!(
            "import urllib.request as u\n\
             u.urlopen(u.Request('http://{server}/moto-api/reset-auth', b'0', {{'Content-Type': 'text/plain'}}))"
        ))?;
        Ok(vpc)
    }

    /// What the nodes may do from now on.
    pub fn allow(&self, actions: &[&str]) -> Result<()> {
        let policy = json!({
            "Version": "2012-10-17",
            "Statement": [{ "Effect": "Allow", "Action": actions, "Resource": "*" }],
        });
        self.admin(&format!(
            "iam.put_role_policy(RoleName='node', PolicyName='p', PolicyDocument={:?})",
            policy.to_string()
        ))
        .map(drop)
    }

    /// Runs Python as an administrator, with `ec2` and `iam`; what it leaves in `out` is returned.
    pub fn admin(&self, script: &str) -> Result<Value> {
        boto(&self.programs, &self.router, &self.admin, script)
    }

    /// The routes of a table by their destination: to which interface.
    pub fn routes(&self, table: &str) -> Result<BTreeMap<String, String>> {
        let said = self.admin(&format!(
            "routes = ec2.describe_route_tables(RouteTableIds=['{table}'])['RouteTables'][0]['Routes']\n\
             out = {{r['DestinationCidrBlock']: r.get('NetworkInterfaceId', '') for r in routes}}"
        ))?;
        Ok(serde_json::from_value(said)?)
    }

    /// Whether packets that are not an interface's own are dropped.
    pub fn checks_addresses(&self, interface: &str) -> Result<bool> {
        let said = self.admin(&format!(
            "out = ec2.describe_network_interfaces(NetworkInterfaceIds=['{interface}'])\
             ['NetworkInterfaces'][0]['SourceDestCheck']"
        ))?;
        said.as_bool().context("a truth")
    }

    /// How an agent is started on an instance: whatever it knows, it has of the instance.
    pub fn launch(&self, lab: &Lab) -> Result<Launch> {
        let url = |port: u16| format!("http://{}:{port}", router_address(0));
        launch(
            lab,
            &self.programs,
            &[
                ("AWS_ENDPOINT_URL_EC2", url(API_PORT)),
                ("AWS_EC2_METADATA_SERVICE_ENDPOINT", url(METADATA_PORT)),
                ("HOME", self.dir.display().to_string()),
            ],
        )
    }

    /// What was asked of the metadata service without a session.
    pub fn sessionless(&self) -> Vec<String> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.clone()
    }
}

/// Makes the VPC, its instances and tables, and who may do what.
fn setup(lab: &Lab) -> String {
    let addresses: Vec<String> = lab
        .nodes()
        .iter()
        .map(|node| node.address.to_string())
        .collect();
    format!(
        "vpc = ec2.create_vpc(CidrBlock='172.30.0.0/16')['Vpc']['VpcId']\n\
         subnet = ec2.create_subnet(VpcId=vpc, CidrBlock='172.30.0.0/24')['Subnet']['SubnetId']\n\
         of = lambda key: [{{'Name': 'vpc-id', 'Values': [vpc]}}, {{'Name': key, 'Values': ['true']}}]\n\
         main = ec2.describe_route_tables(Filters=of('association.main'))['RouteTables'][0]['RouteTableId']\n\
         table = lambda: ec2.create_route_table(VpcId=vpc)['RouteTable']['RouteTableId']\n\
         image = ec2.describe_images()['Images'][0]['ImageId']\n\
         def instance(address):\n  \
           i = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, SubnetId=subnet, PrivateIpAddress=address)\n  \
           i = i['Instances'][0]\n  \
           return [i['InstanceId'], i['NetworkInterfaces'][0]['NetworkInterfaceId']]\n\
         iam.create_user(UserName='admin')\n\
         k = iam.create_access_key(UserName='admin')['AccessKey']\n\
         admin = [k['AccessKeyId'], k['SecretAccessKey'], '']\n\
         role = iam.create_role(RoleName='node', AssumeRolePolicyDocument='{{}}')['Role']['Arn']\n\
         k = client('sts').assume_role(RoleArn=role, RoleSessionName='instance')['Credentials']\n\
         node = [k['AccessKeyId'], k['SecretAccessKey'], k['SessionToken']]\n\
         out = {{'main': main, 'tables': [table(), table()], 'admin': admin, 'node': node,\n  \
           'instances': [instance(a) for a in {addresses:?}]}}\n\
         everything = {{'Version': '2012-10-17', 'Statement': [{{'Effect': 'Allow', 'Action': '*', 'Resource': '*'}}]}}\n\
         iam.put_user_policy(UserName='admin', PolicyName='p', PolicyDocument=json.dumps(everything))\n"
    )
}

fn boto(programs: &Programs, router: &Namespace, key: &Key, script: &str) -> Result<Value> {
    let Key { id, secret, .. } = key;
    let text = format!(
        "import boto3, json\n\
         client = lambda name: boto3.client(name, region_name='{REGION}', aws_access_key_id='{id}',\n  \
           aws_secret_access_key='{secret}', endpoint_url='http://{}:{API_PORT}')\n\
         ec2, iam, out = client('ec2'), client('iam'), None\n\
         {script}\n\
         print(json.dumps(out))\n",
        router_address(0)
    );
    let mut command = router.command(programs.python.to_str().context("a path in UTF-8")?);
    let said = checked(command.args(["-c", &text]))?;
    Ok(serde_json::from_str(&said)?)
}

/// The metadata service, which tells instances by the addresses they ask from.
fn metadata(
    router: &Namespace,
    instances: BTreeMap<Ipv4Addr, String>,
    key: &Key,
    refused: &Arc<Mutex<Vec<String>>>,
) -> Result<Double> {
    let credentials = json!({
        "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2020-01-01T00:00:00Z",
        "AccessKeyId": key.id, "SecretAccessKey": key.secret, "Token": key.session,
        "Expiration": "2099-01-01T00:00:00Z",
    });
    let refused = Arc::clone(refused);
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), METADATA_PORT);
    Double::serve(router, address, move |request: &Request| {
        let path = request.path.as_str();
        if request.method == "PUT" && path == "/latest/api/token" {
            let life = request.headers.get(LIFE_HEADER).cloned();
            return match life {
                Some(life) => Answer::new(200, SESSION).with(LIFE_HEADER, life),
                None => Answer::new(400, ""),
            };
        }
        if request.headers.get(SESSION_HEADER).map(String::as_str) != Some(SESSION) {
            let mut refused = refused.lock().unwrap_or_else(PoisonError::into_inner);
            refused.push(path.to_owned());
            return Answer::new(401, "");
        }
        let instance = match request.client {
            IpAddr::V4(address) => instances.get(&address),
            IpAddr::V6(_) => None,
        };
        match (path, instance) {
            ("/latest/meta-data/instance-id", Some(id)) => Answer::new(200, id),
            ("/latest/meta-data/placement/region", _) => Answer::new(200, REGION),
            ("/latest/meta-data/iam/security-credentials/", _) => Answer::new(200, "role"),
            ("/latest/meta-data/iam/security-credentials/role", _) => {
                Answer::new(200, credentials.to_string())
            }
            _ => Answer::new(404, ""),
        }
    })
}
