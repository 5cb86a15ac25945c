-- Sends one request again and again, each with a session id of its own in place of SESSION, and
-- prints the figures as one line of JSON.  wrk -s load.lua URL -- [BODY_FILE]

local before, after, run, count

local function split(text)
   local first, last = text:find("SESSION", 1, true)
   return text:sub(1, first - 1), text:sub(last + 1)
end

function init(args)
   run = string.format("-Bench%x-", os.time() * 1000 + math.random(0, 999))
   count = 0
   local text = wrk.path
   if args[1] then
      local file = assert(io.open(args[1], "rb"))
      text = file:read("*a")
      file:close()
      wrk.method = "POST"
      wrk.headers["Content-Type"] = "application/json"
   end
   before, after = split(text)
end

function request()
   count = count + 1
   local text = before .. run .. count .. after
   if wrk.method == "POST" then
      return wrk.format(nil, nil, nil, text)
   end
   return wrk.format(nil, text)
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      '\n{"requests_per_s": %.1f, "p50_ms": %.3f, "p99_ms": %.3f, "errors": %d, "non_2xx": %d}\n',
      summary.requests / summary.duration * 1e6,
      latency:percentile(50) / 1000,
      latency:percentile(99) / 1000,
      errors.connect + errors.read + errors.write + errors.timeout,
      errors.status
   ))
end
