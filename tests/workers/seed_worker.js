'use strict';
// A worker as they were written in 2018 for the first registry, unchanged in what it asks and in what it expects:
// an endless long poll; 200 is a task, 202 is nothing, 500 and above is "try again"; it knows no other answer.
// What it finds goes to a queue of its own for each request, pushed from inside the handler.
//
//   REGISTRY_URL=http://127.0.0.1:3000 node seed_worker.js zoneCheck

const http = require('http');

const base = process.env.REGISTRY_URL;
const name = process.argv[2];

// The part of axios that the workers used: JSON in and out, and a rejection for every status outside 200 to 299.
const axios = {
  request(method, url, data) {
    return new Promise((resolve, reject) => {
      const body = data === undefined ? null : JSON.stringify(data);
      const headers = { Accept: 'application/json, text/plain, */*', 'User-Agent': 'axios/0.18.0' };
      if (body !== null) {
        headers['Content-Type'] = 'application/json;charset=utf-8';
        headers['Content-Length'] = Buffer.byteLength(body);
      }
      const request = http.request(url, { method, headers }, (response) => {
        let text = '';
        response.setEncoding('utf8');
        response.on('data', (chunk) => { text += chunk; });
        response.on('error', reject);
        response.on('end', () => {
          const answer = { status: response.statusCode, headers: response.headers, data: text };
          try { answer.data = JSON.parse(text); } catch (e) { /* axios hands over the text as it is */ }
          if (answer.status >= 200 && answer.status < 300) return resolve(answer);
          const error = new Error('Request failed with status code ' + answer.status);
          error.response = answer;
          return reject(error);
        });
      });
      request.on('error', reject);
      request.end(body);
    });
  },
  get(url) { return this.request('GET', url); },
  put(url, data) { return this.request('PUT', url, data); },
};

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const api = {
  popTask: (worker) => axios.get(base + '/api/popTask/' + worker),
  pushTask: (worker, task) => axios.put(base + '/api/pushTask/' + worker, task),
};

async function handle(task) {
  for (let step = 1; step <= task.steps; step += 1) {
    const pushed = await api.pushTask('queue_results:' + task.uuid, { step, of: task.steps, zone: task.zone });
    if (pushed.data.success !== true) throw new Error('not pushed: ' + JSON.stringify(pushed.data));
  }
}

async function work() {
  while (true) {
    try {
      const response = await api.popTask(name);
      if (response.status === 202) {
        console.log('nothing');
        continue;
      }
      console.log('task ' + JSON.stringify(Object.keys(response.data)));
      await handle(response.data.task);
    } catch (error) {
      const again = !error.response || error.response.status >= 500;
      console.log((again ? 'try again: ' : 'unexpected: ') + error.message);
      if (!again) process.exit(1);
      await sleep(100);
    }
  }
}

work();
