//! A headless Chromium, driven through WebDriver (<https://www.w3.org/TR/webdriver2>).

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long something may take to appear on a page.
const PATIENCE: Duration = Duration::from_secs(30);
/// The key under which WebDriver names elements.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser window. Closed when dropped.
pub struct Browser {
    driver: Child,
    session: String,
}

impl Browser {
    /// Opens a window; `None` where no `chromedriver` is installed.
    pub fn open() -> Option<Self> {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines
            .map_while(Result::ok)
            .find_map(|line| {
                let (_, port) = line.split_once("started successfully on port ")?;
                Some(port.trim_end_matches('.').to_owned())
            })
            .expect("chromedriver says where it listens");
        let options = json!({ "args": [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--window-size=1200,1600",
        ]});
        let capabilities =
            json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": options } } });
        let base = format!("http://127.0.0.1:{port}/session");
        let opened = post(&base, &capabilities);
        let session = format!("{base}/{}", opened["sessionId"].as_str().unwrap());
        Some(Self { driver, session })
    }

    /// Goes to an address.
    pub fn go_to(&self, url: &str) {
        self.ask("url", &json!({ "url": url }));
    }

    /// Waits for an element whose text contains `text` and gives its name.
    pub fn wait_for(&self, selector: &str, text: &str) -> String {
        let started = Instant::now();
        loop {
            let found = self.run(
                "const [selector, text] = arguments;
                 return Array.from(document.querySelectorAll(selector))
                     .find((one) => one.checkVisibility() && one.textContent.includes(text)) ?? null;",
                json!([selector, text]),
            );
            if let Some(element) = found[ELEMENT].as_str() {
                return element.to_owned();
            }
            let page = || self.run("return document.body.innerText", json!([]));
            assert!(started.elapsed() < PATIENCE, "no {selector} with {text:?} in\n{}", page());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Clicks on what [`wait_for`](Self::wait_for) finds.
    pub fn click(&self, selector: &str, text: &str) {
        // The page may have put a new element in its place meanwhile.
        let started = Instant::now();
        loop {
            let element = self.wait_for(selector, text);
            let url = format!("{}/element/{element}/click", self.session);
            match try_post(&url, &json!({})) {
                Ok(_) => return,
                Err(problem) => assert!(started.elapsed() < PATIENCE, "{problem}"),
            }
        }
    }

    /// Says yes to a question.
    pub fn accept(&self) {
        self.ask("alert/accept", &json!({}));
    }

    /// Types into an input.
    pub fn type_into(&self, selector: &str, text: &str) {
        let element = self.wait_for(selector, "");
        self.ask(&format!("element/{element}/value"), &json!({ "text": text }));
    }

    /// What a script returns.
    pub fn run(&self, script: &str, arguments: Value) -> Value {
        self.ask("execute/sync", &json!({ "script": script, "args": arguments }))
    }

    /// Saves what is seen as a PNG.
    pub fn screenshot(&self, path: &Path) {
        let url = format!("{}/screenshot", self.session);
        let answer: Value = ureq::get(url).call().unwrap().body_mut().read_json().unwrap();
        let image = data_encoding::BASE64.decode(answer["value"].as_str().unwrap().as_bytes());
        std::fs::write(path, image.unwrap()).unwrap();
    }

    fn ask(&self, command: &str, body: &Value) -> Value {
        post(&format!("{}/{command}", self.session), body)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = ureq::delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn post(url: &str, body: &Value) -> Value {
    try_post(url, body).unwrap()
}

fn try_post(url: &str, body: &Value) -> Result<Value, String> {
    let request = ureq::post(url).config().http_status_as_error(false).build();
    let mut answer = request.send_json(body).map_err(|error| error.to_string())?;
    let told: Value = answer.body_mut().read_json().map_err(|error| error.to_string())?;
    match told["value"]["error"].as_str() {
        Some(problem) => Err(format!("{problem}: {}", told["value"]["message"])),
        None => Ok(told["value"].clone()),
    }
}
