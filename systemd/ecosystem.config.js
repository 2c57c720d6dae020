// Workers under pm2, for machines without systemd: pm2 start ecosystem.config.js
// pm2 knows neither readiness nor a watchdog; where systemd is at hand, its unit is the better keeper.
module.exports = {
  apps: [
    {
      name: "remote-trainer-worker",
      script: "remote-trainer",
      args: "worker",
      interpreter: "none",
      // pm2 stops with SIGINT, which a worker takes like SIGTERM: it hands its jobs over and leaves. Then, not earlier, SIGKILL.
      kill_timeout: 90000,
      // Only the worker: what it started on this machine goes on and is adopted by the next one.
      treekill: false,
      autorestart: true,
      exp_backoff_restart_delay: 200,
      merge_logs: true,
      env: { REMOTE_TRAINER_LOG_FORMAT: "json" },
    },
  ],
};
